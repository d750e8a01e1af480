// Which instruction sets this machine has.
#include "dispatch.h"

namespace prograd::cpu {

bool runs([[maybe_unused]] InstructionSet set) {
#ifdef PF_X86
  if (set == InstructionSet::avx512) {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  }
  if (set == InstructionSet::avx2) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
  return set == InstructionSet::baseline;
}

InstructionSet best() {
  static const InstructionSet set = runs(InstructionSet::avx512) ? InstructionSet::avx512
                                    : runs(InstructionSet::avx2) ? InstructionSet::avx2
                                                                 : InstructionSet::baseline;
  return set;
}

const char* name_of(InstructionSet set) {
  switch (set) {
    case InstructionSet::avx512: return "avx512";
    case InstructionSet::avx2: return "avx2";
    default: return "baseline";
  }
}

}  // namespace prograd::cpu
