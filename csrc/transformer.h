// What a text tower computes between its matrix products, one element at a time, for CPU and GPU code alike. No torch
// header here. The reference in plain PyTorch is prograd_fast/reference/transformer.py.
#pragma once

#include <type_traits>

#include "math.h"

namespace prograd {

PF_HOST_DEVICE float magnitude(float x) { return ::fabsf(x); }
PF_HOST_DEVICE double magnitude(double x) { return ::fabs(x); }

// ---- GELU: x gate(x)

// As the operators number them.
enum class Approximate : int { none, tanh, sigmoid };

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
template <Approximate approximate, typename T>
PF_HOST_DEVICE Gate<T> gelu_gate(T x) {
  if constexpr (approximate == Approximate::none) {
    const NormalTail<T> tail = normal_tail(magnitude(x));
    return {x < T(0) ? tail.probability : T(1) - tail.probability, tail.density * T(0.39894228040143267794)};
  } else if constexpr (approximate == Approximate::tanh) {
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
template <Approximate approximate, typename T>
PF_HOST_DEVICE T gelu(T x) {
  return gelu_gate<approximate>(x).gelu(x);
}
template <Approximate approximate, typename T>
PF_HOST_DEVICE T gelu_derivative(T x) {
  return gelu_gate<approximate>(x).derivative(x);
}

// Calls body with a constant, so that a loop inside of it has no branch.
template <typename Body>
PF_HOST_DEVICE void with_approximation(Approximate approximate, Body body) {
  switch (approximate) {
    case Approximate::none: return body(std::integral_constant<Approximate, Approximate::none>{});
    case Approximate::tanh: return body(std::integral_constant<Approximate, Approximate::tanh>{});
    case Approximate::sigmoid: return body(std::integral_constant<Approximate, Approximate::sigmoid>{});
  }
}

// ---- layer norm

// (x - mean) rstd weight + bias
template <typename T>
PF_HOST_DEVICE T layer_normed(T x, T mean, T rstd, T weight, T bias) {
  return fused((x - mean) * rstd, weight, bias);
}

// The gradient in x from u, the gradient in h = (x - mean) rstd, and from the means of u and of u h over the row.
template <typename T>
PF_HOST_DEVICE T layer_norm_gradient(T u, T h, T rstd, T mean_u, T mean_uh) {
  return rstd * (u - fused(h, mean_uh, mean_u));
}

}  // namespace prograd
