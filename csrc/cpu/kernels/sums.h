// Long sums. A float that takes up one number after another rounds away more of each the larger it has become, and of
// equal numbers always in the same direction. So a float adds up no more than `run` numbers, and doubles add up the
// floats. Included by the kernels alone.
#pragma once

#include <cstdint>

#include "vector.h"

namespace prograd::cpu {
namespace {

constexpr std::int64_t run = 16;  // numbers for one lane of a register

// Elements whose sum a register of T may add up.
template <typename T>
constexpr std::int64_t run_size = run * lanes<T>;

// Calls body(begin, end) for such parts of n elements.
template <typename T, typename Body>
PF_HOST_DEVICE void each_run(std::int64_t n, const Body& body) {
  constexpr std::int64_t step = run_size<T>;
  std::int64_t i = 0;
  for (; i + step <= n; i += step) body(i, i + step);
  if (i < n) body(i, n);
}

// Sums of logarithms of a run of numbers, normal and above 0 or infinite: a logarithm of the product of their
// mantissas, which is below 2^run, and of nothing else.
template <typename T>
class SumOfLogarithms {
  using V = Vector<T>;

 public:
  PF_HOST_DEVICE void add(V x) {
    V mantissa, exponent;
    split_in_two(x, mantissa, exponent);
    product_ *= mantissa;
    exponents_ += exponent;
  }
  PF_HOST_DEVICE V total() const {
    return multiply_add(exponents_, broadcast(T(0.69314718055994531)), Arithmetic<V>::log(product_));
  }

 private:
  V product_ = broadcast(T(1)), exponents_{};
};

// A long sum, kept in the lanes of a register: to add up the lanes takes as long as a run.
template <typename T>
class LongSum {
 public:
  // What the lanes of a register have added up in a run.
  void add(Vector<T> of_run) {
    T parts[lanes<T>];
    put(parts, of_run);
#pragma omp simd
    for (std::int64_t k = 0; k < lanes<T>; ++k) parts_[k] += parts[k];
  }
  double total() const {
    double sum = 0;
    for (const double part : parts_) sum += part;
    return sum;
  }

 private:
  double parts_[lanes<T>] = {};
};

}  // namespace
}  // namespace prograd::cpu
