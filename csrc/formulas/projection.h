// The projection of a task gradient a against a general gradient b, g = alpha a + beta b, for CPU and GPU code alike.
#pragma once

#include "../common/math.h"

namespace prograd {

// ProGrad's beta = -lambda min(0, <a,b>) / ||b||^2; 0 where ||b||^2 vanishes, or a sum or the quotient is not finite.
// Also 0 where ||b||^2 <= floor^2 ||a||^2, b then being rounding, unless ||a||^2 is not finite.
template <typename T>
PF_HOST_DEVICE T conflict_beta(T task_norm, T dot, T general_norm, T lambda, T noise_floor) {
  constexpr T smallest = std::numeric_limits<T>::min();  // below it the quotient has no correct digits left
  constexpr T largest = std::numeric_limits<T>::max();
  const T quotient = dot / general_norm;
  // every comparison with NaN is false
  const bool usable = quotient < T(0) && quotient >= -largest && general_norm >= smallest && general_norm <= largest;
  // one factor after the other: floor^2 alone leaves the range of float earlier than the product does
  const bool absent = general_norm <= noise_floor * task_norm * noise_floor && task_norm <= largest;
  return usable && !absent ? -lambda * quotient : T(0);
}

// beta = 0 must not touch b: 0 * inf is NaN.
template <typename T>
PF_HOST_DEVICE T projected(T a, T b, T alpha, T beta) {
  return beta == T(0) ? alpha * a : fused(beta, b, alpha * a);
}

}  // namespace prograd
