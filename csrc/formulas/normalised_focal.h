// The normalised focal loss of a pixel, for CPU and GPU code alike.
#pragma once

#include "../common/math.h"

namespace prograd {

PF_HOST_DEVICE float any_power(float x, float exponent) { return ::powf(x, exponent); }
PF_HOST_DEVICE double any_power(double x, double exponent) { return ::pow(x, exponent); }

// q^gamma; the usual exponents 1 and 2 keep the loops of the CPU vectorised, 0 is any other
template <int exponent, typename T>
PF_HOST_DEVICE T focal_power(T q, T gamma) {
  if constexpr (exponent == 1) return q;
  else if constexpr (exponent == 2) return q * q;
  else return any_power(q, gamma);
}

// The probability p of a label, and q = 1 - p, of z towards it; neither loses digits to the other.
template <typename T>
struct LabelProbability {
  T p, q;

  PF_HOST_DEVICE explicit LabelProbability(T z) {
    const T e = exp(z > T(0) ? -z : z), large = T(1) / (T(1) + e), small = e * large;
    p = z > T(0) ? large : small;
    q = z > T(0) ? small : large;
  }
};

// What the weight m q^gamma of a pixel is multiplied by.
template <typename T>
struct FocalPixel {
  T log_p;      // ln min(p + eps, 1)
  T of_log;     // the derivative in z of log_p
  T of_weight;  // of the weight, over the weight

  PF_HOST_DEVICE FocalPixel(const LabelProbability<T>& of_label, T gamma, T eps) {
    const T p = of_label.p, q = of_label.q, reciprocal = T(1) / (p + eps);
    // near 1 by x = q - eps, which has the digits that p has lost: ln(1 - x) = ln u - ((u - 1) + x) / u, u = 1 - x
    // rounded, which is p + eps
    const T x = q - eps > T(0) ? q - eps : T(0), u = T(1) - x;
    const bool near = q < T(0.5);
    const T logarithm = log(near ? u : p + eps);
    log_p = near ? logarithm - ((u - T(1)) + x) * reciprocal : logarithm;
    of_log = q > eps ? p * q * reciprocal : T(0);
    of_weight = -gamma * p;
  }
};

}  // namespace prograd
