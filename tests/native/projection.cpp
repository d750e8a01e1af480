// Gram entries and projection.
#include "../../csrc/cpu/projection.h"

#include "native.h"

namespace {

void test_projection(const Case& c) {
  for (const double beta : {0.0, -0.3}) {
    double results[2][4] = {};
    for (int side = 0; side < 2; ++side) {
      const auto& kernels = c.kernels<ProjectionKernels>(side);
      std::mt19937 random(1);
      Buffer a(c.storage, c.n, c.shift), b(c.storage, c.n);
      a.fill(random), b.fill(random);
      double sums[3];
      kernels.gram(a.data(), b.data(), c.n, sums);
      kernels.project(a.data(), b.data(), c.n, 0.5, beta);
      const double values[4] = {sums[0], sums[1], sums[2], a[c.n - 1]};
      std::memcpy(results[side], values, sizeof values);
    }
    const char* names[4] = {"gram aa", "gram ab", "gram bb", "projected"};
    for (int i = 0; i < 4; ++i) c.agree(names[i], results[1][i], results[0][i], i == 1 ? double(c.n) : 1);
  }
}

// Equal numbers, whose roundings all go one way. Under a sanitizer the compiler may keep a run in one lane, so the
// bound is wider than that of tests/ops/test_long_sums.py; a plain sum of so many is off by 3e-5.
void test_long_gram(InstructionSet set) {
  constexpr std::int64_t n = 16384;
  for (const double value : {0.1, 0.7, 1.1, 1.9, 3.3}) {
    Buffer a(Storage::float32, n), b(Storage::float32, n);
    a.fill_with(value), b.fill_with(-value);
    double sums[3];
    kernels_for<ProjectionKernels>(set, Storage::float32).gram(a.data(), b.data(), n, sums);
    for (int i = 0; i < 3; ++i) {
      const double wanted = (i == 1 ? -1 : 1) * a[0] * a[0] * double(n);
      check(std::fabs(sums[i] / wanted - 1) < 4e-6, set, "gram of equal numbers", sums[i], wanted);
    }
  }
}

const Test cases(test_projection);
const Test long_gram(test_long_gram);

}  // namespace
