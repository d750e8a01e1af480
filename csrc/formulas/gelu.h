// GELU, x gate(x), for CPU and GPU code alike.
#pragma once

#include "../common/math.h"
#include "../common/types.h"

namespace prograd {

template <typename T>
struct Gate {
  T value, slope;

  PF_HOST_DEVICE T gelu(T x) const { return x * value; }
  PF_HOST_DEVICE T derivative(T x) const { return fused(x, slope, value); }
};

// sigmoid(w) and its derivative. Nothing overflows and nothing cancels.
template <typename T>
PF_HOST_DEVICE Gate<T> sigmoid_gate(T w) {
  const T e = exp(-magnitude(w)), quotient = T(1) / (T(1) + e);
  return {w < T(0) ? e * quotient : quotient, e * quotient * quotient};
}

// Mills' ratio of the normal distribution, P(X > x) / e^(-x^2/2) for x >= 0: a polynomial in 1 / (1 + 0.3 x), minimax
// in the relative error (3e-9) on [0, 14], beyond which e^(-x^2/2) is 0 in float. With it the gate is right to 2e-7.
PF_HOST_DEVICE float mills_ratio(float x) {
  const float t = 1.0f / fused(0.3f, x, 1.0f);
  float p = fused(-2.061294951e-2f, t, 1.123764291e-1f);
  p = fused(p, t, -2.280690521e-1f);
  p = fused(p, t, 1.915837526e-1f);
  p = fused(p, t, -7.924906164e-2f);
  p = fused(p, t, 9.605875611e-2f);
  p = fused(p, t, 7.842525840e-2f);
  p = fused(p, t, 1.102273911e-1f);
  p = fused(p, t, 1.195728332e-1f);
  p = fused(p, t, 1.196866333e-1f);
  return p * t;
}

// P(X > x) and e^(-x^2/2) for x >= 0
template <typename T>
struct NormalTail {
  T probability, density;
};
PF_HOST_DEVICE NormalTail<float> normal_tail(float x) {
  const float e = exp(-0.5f * x * x);
  return {mills_ratio(x) * e, e};
}
PF_HOST_DEVICE NormalTail<double> normal_tail(double x) {
  return {0.5 * ::erfc(x * 0.70710678118654752440), exp(-0.5 * x * x)};
}

// The gate of an approximation known at compile time, and its derivative.
template <GeluApproximation approximation, typename T>
PF_HOST_DEVICE Gate<T> gelu_gate(T x) {
  if constexpr (approximation == GeluApproximation::none) {
    const NormalTail<T> tail = normal_tail(magnitude(x));
    return {x < T(0) ? tail.probability : T(1) - tail.probability, tail.density * T(0.39894228040143267794)};
  } else if constexpr (approximation == GeluApproximation::tanh) {
    // (1 + tanh w)/2 = sigmoid(2w). Beyond 32 the gate is 0 or 1 and the slope 0; x^3 must not overflow. NaN stays one.
    constexpr T factor = T(1.59576912160573071176), cubic = T(0.044715);
    const T u = x < T(-32) ? T(-32) : x > T(32) ? T(32) : x;
    const T square = u * u;
    const Gate<T> gate = sigmoid_gate(factor * u * fused(cubic, square, T(1)));
    return {gate.value, gate.slope * factor * fused(T(3) * cubic, square, T(1))};
  } else {
    constexpr T factor = T(1.702);
    const Gate<T> gate = sigmoid_gate(factor * x);
    return {gate.value, gate.slope * factor};
  }
}

// Numbers in, numbers out: a structure that is built inside of a loop keeps the loop from being vectorised.
template <GeluApproximation approximation, typename T>
PF_HOST_DEVICE T gelu(T x) {
  return gelu_gate<approximation>(x).gelu(x);
}
template <GeluApproximation approximation, typename T>
PF_HOST_DEVICE T gelu_derivative(T x) {
  return gelu_gate<approximation>(x).derivative(x);
}

// Calls body with a constant, so that a loop inside of it has no branch.
template <typename Body>
PF_HOST_DEVICE void with_approximation(GeluApproximation approximation, Body body) {
  switch (approximation) {
    case GeluApproximation::none: return body(std::integral_constant<GeluApproximation, GeluApproximation::none>{});
    case GeluApproximation::tanh: return body(std::integral_constant<GeluApproximation, GeluApproximation::tanh>{});
    case GeluApproximation::sigmoid:
      return body(std::integral_constant<GeluApproximation, GeluApproximation::sigmoid>{});
  }
}

}  // namespace prograd
