// The CPU kernels under AddressSanitizer and UndefinedBehaviorSanitizer: every instruction set, dtype and loop, on
// memory with nothing around it. `make native` runs this; that the numbers are right is tested from Python, here only
// that the instruction sets agree.
#include <cstdlib>

#include "native.h"

int main() {
  int sets = 0;
  for (const auto set : {InstructionSet::baseline, InstructionSet::avx2, InstructionSet::avx512}) {
    if (!runs(set)) continue;
    ++sets;
    for (const auto test : Test::of_sets()) test(set);
    for (const Storage storage : {Storage::float64, Storage::float32, Storage::bfloat16, Storage::float16}) {
      // the instruction sets differ in the order of sums and in fused products, so in the last bit of what is stored
      const double tolerance = storage == Storage::float64 ? 1e-13 : storage == Storage::float32 ? 1e-5 : 1e-2;
      // one element; around a vector and a cache line; around a block of cotangents
      for (const std::int64_t n : {1, 2, 15, 16, 17, 31, 33, 63, 64, 65, 127, 1000, 1023, 1025, 2500}) {
        for (const std::int64_t shift : {0, 1, 3}) {
          const Case c{set, storage, n, shift, tolerance};
          for (const auto test : Test::of_cases()) test(c);
        }
      }
    }
  }
  std::printf("%d instruction sets, best: %s; %d failures\n", sets, name_of(best()), failures);
  return failures ? EXIT_FAILURE : EXIT_SUCCESS;
}
