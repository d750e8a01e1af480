// Layer norm of one element, for CPU and GPU code alike.
#pragma once

#include "../common/math.h"

namespace prograd {

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
