// Gram entries and projection.
#include "../../csrc/cpu/projection.h"

#include "native.h"

namespace {

void test_gram(const Case& c) {
  double results[2][3];
  for (int side = 0; side < 2; ++side) {
    std::mt19937 random(1);
    Buffer a(c.storage, c.n, c.shift), b(c.storage, c.n);
    a.fill(random), b.fill(random);
    c.kernels<ProjectionKernels>(side).gram(a.data(), b.data(), c.n, results[side]);
  }
  const char* names[3] = {"gram aa", "gram ab", "gram bb"};
  for (int i = 0; i < 3; ++i) c.agree(names[i], results[1][i], results[0][i], i == 1 ? double(c.n) : 1);
}

// In place, and into other memory by both ways: the same numbers.
void test_project(const Case& c) {
  const double coefficients[3][2] = {{1, 0}, {0.5, 0}, {0.5, -0.3}};
  for (const auto& [alpha, beta] : coefficients) {
    double last[2];
    for (int side = 0; side < 2; ++side) {
      const auto& kernels = c.kernels<ProjectionKernels>(side);
      std::mt19937 random(1);
      Buffer a(c.storage, c.n), b(c.storage, c.n), usual(c.storage, c.n, c.shift), past(c.storage, c.n, c.shift);
      a.fill(random), b.fill(random);
      kernels.project(usual.data(), a.data(), b.data(), c.n, alpha, beta, false);
      kernels.project(past.data(), a.data(), b.data(), c.n, alpha, beta, true);
      kernels.project(a.data(), a.data(), b.data(), c.n, alpha, beta, true);
      for (std::int64_t i = 0; i < c.n; ++i) {
        check(past[i] == a[i] && usual[i] == a[i], side ? c.set : InstructionSet::baseline,
              "one of three ways to project", past[i], a[i]);
      }
      last[side] = a[c.n - 1];
    }
    c.agree("projected", last[1], last[0], 1);
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

const Test gram(test_gram);
const Test project(test_project);
const Test long_gram(test_long_gram);

}  // namespace
