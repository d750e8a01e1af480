// From a family of kernels to those for this machine and for a storage.
//
// What is in csrc/cpu/kernels is compiled once for each instruction set: plain functions on contiguous memory, one
// thread each, no torch. A family X has a table of them, XKernels in csrc/cpu/x.h. Callers split the work in chunks
// whose sizes do not depend on the number of threads.
#pragma once

#include <cstdint>

#include "../common/types.h"

namespace prograd::cpu {

constexpr std::int64_t widest_register = 16;  // elements

enum class InstructionSet { baseline, avx2, avx512 };

// The tables of a family, in the order of Storage.
template <typename Kernels>
struct ByStorage {
  Kernels tables[4];

  const Kernels& operator[](Storage storage) const { return tables[int(storage)]; }
};

// Each is defined in a translation unit of its own.
template <typename Kernels>
struct Compiled {
  static const ByStorage<Kernels> baseline, avx2, avx512;
};

// Whether this machine and this build can run it; the best that they can.
bool runs(InstructionSet set);
InstructionSet best();
const char* name_of(InstructionSet set);

template <typename Kernels>
const Kernels& kernels_for([[maybe_unused]] InstructionSet set, Storage storage) {
#ifdef PF_X86
  if (set == InstructionSet::avx512) return Compiled<Kernels>::avx512[storage];
  if (set == InstructionSet::avx2) return Compiled<Kernels>::avx2[storage];
#endif
  return Compiled<Kernels>::baseline[storage];
}

template <typename Kernels>
const Kernels& kernels_for(Storage storage) {
  return kernels_for<Kernels>(best(), storage);
}

}  // namespace prograd::cpu
