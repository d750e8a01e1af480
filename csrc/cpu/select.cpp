// Which table of kernels this machine runs.
#include <cstring>

#include "kernels.h"

namespace prograd {

extern const Kernels kernels_baseline;
#ifdef PF_X86
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;
#endif

const Kernels* kernels_for(const char* isa) {
#ifdef PF_X86
  if (!std::strcmp(isa, "avx512")) {
    const bool runs = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    return runs ? &kernels_avx512 : nullptr;
  }
  if (!std::strcmp(isa, "avx2")) {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? &kernels_avx2 : nullptr;
  }
#endif
  return std::strcmp(isa, "baseline") ? nullptr : &kernels_baseline;
}

const Kernels& kernels() {
  static const Kernels* best = [] {
    const Kernels* table = kernels_for("avx512");
    if (!table) table = kernels_for("avx2");
    return table ? table : &kernels_baseline;
  }();
  return *best;
}

}  // namespace prograd
