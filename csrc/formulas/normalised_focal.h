// The normalised focal loss of a pixel, for CPU and GPU code alike.
#pragma once

#include <limits>

#include "../common/math.h"

namespace prograd {

// Of numbers, or of registers full of them.

// q^gamma; 0 is any exponent but the usual ones, 1 and 2
template <int exponent, typename F, typename T>
PF_HOST_DEVICE F focal_power(F q, T gamma) {
  if constexpr (exponent == 1) return q;
  else if constexpr (exponent == 2) return q * q;
  else return Arithmetic<F>::power(q, gamma);
}

// An eps that T has a normal number for, and so has p + eps.
template <typename T>
PF_HOST_DEVICE T focal_eps(double eps) {
  return larger(T(eps), std::numeric_limits<T>::min());
}

// e^-z, of z towards a label: how likely it is not, over how likely it is. Cut before the latter is no normal number.
template <typename F>
PF_HOST_DEVICE F odds_against(F z) {
  using T = typename Arithmetic<F>::Number;
  constexpr T most = T(0.693) * T(std::numeric_limits<T>::max_exponent - 3);
  return Arithmetic<F>::exp(-z > most ? F{} + most : -z);
}

// The probability p of a label, and q = 1 - p; neither loses digits to the other. p is 0 where the odds are cut.
template <typename F>
struct LabelProbability {
  F p, q;

  PF_HOST_DEVICE explicit LabelProbability(F odds) {
    using T = typename Arithmetic<F>::Number;
    const F possible = Arithmetic<F>::reciprocal(T(1) + odds);
    p = odds > std::numeric_limits<T>::max() / T(16) ? F{} : possible;
    q = odds * possible;
  }
};

// What the weight m q^gamma of a pixel is multiplied by.
template <typename F>
struct FocalPixel {
  using T = typename Arithmetic<F>::Number;
  F rest, near;  // max(q - eps, 0) and p + eps
  F of_log;      // the derivative in z of log_p
  F of_weight;   // of the weight, over the weight

  PF_HOST_DEVICE FocalPixel(const LabelProbability<F>& of_label, T gamma, T eps)
      : rest(larger(of_label.q - eps, F{})), near(of_label.p + eps), of_weight(-gamma * of_label.p) {
    of_log = rest > T(0) ? of_label.p * of_label.q * Arithmetic<F>::reciprocal(near) : F{};
  }

  // ln min(p + eps, 1)
  PF_HOST_DEVICE static F log_p(F rest, F near) { return Arithmetic<F>::log_of_rest(rest, near); }
};

}  // namespace prograd
