// The steps of AdamW and SGD on one element, for CPU and GPU code alike.
#pragma once

#include "../common/math.h"

namespace prograd {

template <typename T>
struct AdamW {
  T decay;  // 1 - lr wd
  T beta2;
  T grad1, grad2;  // 1 - beta1, 1 - beta2
  T step_size;     // lr / (1 - beta1^t)
  T root_scale;    // sqrt(1 - beta2^t)
  T eps;

  // step: t, 1 at the first step. In double and rounded once, as torch.optim does.
  PF_HOST_DEVICE static AdamW at(double step, double lr, double beta1, double beta2, double eps, double weight_decay) {
    return of_powers(::pow(beta1, step), ::pow(beta2, step), lr, beta1, beta2, eps, weight_decay);
  }

  // power1, power2: beta1^t, beta2^t
  PF_HOST_DEVICE static AdamW of_powers(double power1, double power2, double lr, double beta1, double beta2, double eps,
                                        double weight_decay) {
    return {T(1 - lr * weight_decay), T(beta2), T(1 - beta1), T(1 - beta2), T(lr / (1 - power1)),
            T(::sqrt(1 - power2)),    T(eps)};
  }

  // By linear interpolation, as torch.optim does.
  PF_HOST_DEVICE T exp_avg(T m, T g) const { return fused(grad1, g - m, m); }
  PF_HOST_DEVICE T exp_avg_sq(T v, T g) const { return fused(g, g * grad2, v * beta2); }
  // v: the largest so far with amsgrad
  PF_HOST_DEVICE T parameter(T p, T m, T v) const { return p * decay - step_size * m / (root(v) / root_scale + eps); }

  template <typename U>
  PF_HOST_DEVICE AdamW<U> as() const {
    return {U(decay), U(beta2), U(grad1), U(grad2), U(step_size), U(root_scale), U(eps)};
  }
};

template <typename T>
struct SGD {
  T lr, momentum;
  T keep;  // 1 - dampening
  T weight_decay;
  bool nesterov, first;

  // g: the gradient plus weight decay; with momentum, it enters the buffer and what comes out replaces it
  PF_HOST_DEVICE T decayed(T p, T g) const { return fused(weight_decay, p, g); }
  PF_HOST_DEVICE T buffer(T m, T g) const { return first ? g : fused(momentum, m, keep * g); }
  PF_HOST_DEVICE T direction(T m, T g) const { return nesterov ? fused(momentum, m, g) : m; }
  PF_HOST_DEVICE T parameter(T p, T direction) const { return fused(-lr, direction, p); }

  template <typename U>
  PF_HOST_DEVICE SGD<U> as() const {
    return {U(lr), U(momentum), U(keep), U(weight_decay), nesterov, first};
  }
};

}  // namespace prograd
