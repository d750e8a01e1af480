// Sum and gradient of a loss of differences on contiguous memory. Included by kernels.cpp alone.
#pragma once

#include "../differences.h"
#include "kernels.h"
#include "storage.h"
#include "sums.h"

namespace prograd {
namespace {

// Sum of f(x - t) over n elements; writes factor f'(x - t).
template <typename S, typename F>
double difference_loss(const S* __restrict x, const S* __restrict t, S* __restrict cotangents, std::int64_t n, F f,
                       double factor_) {
  using T = Accumulation<S>;
  const T factor = T(factor_);
  double total = 0;
  each_run<T>(n, [&](std::int64_t begin, std::int64_t end) {
    T sum = 0;
#pragma omp simd reduction(+ : sum)
    for (std::int64_t i = begin; i < end; ++i) {
      const T difference = load(x[i]) - load(t[i]);
      sum += f.value(difference);
      store(cotangents[i], factor * f.slope(difference));
    }
    total += sum;
  });
  return total;
}

template <typename S>
double difference_loss(const Kernels::Difference& d, std::int64_t n) {
  using T = Accumulation<S>;
  const S *x = static_cast<const S*>(d.prediction), *t = static_cast<const S*>(d.target);
  S* cotangents = static_cast<S*>(d.cotangents);
  if (!d.soft_wing) return difference_loss(x, t, cotangents, n, SquaredError<T>{}, d.factor);
  return difference_loss(x, t, cotangents, n, SoftWing<T>::of(d.omega1, d.omega2, d.epsilon), d.factor);
}

}  // namespace
}  // namespace prograd
