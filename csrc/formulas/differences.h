// Losses of a difference, element by element, for CPU and GPU code alike.
#pragma once

#include <limits>

#include "../common/math.h"

namespace prograd {

// Of differences of type T, or of registers full of them.

template <typename T>
struct SquaredError {
  template <typename F>
  PF_HOST_DEVICE F value(F difference) const {
    return difference * difference;
  }
  template <typename F>
  PF_HOST_DEVICE F slope(F difference) const {
    return T(2) * difference;
  }
};

// d = |difference|: d below omega1, else omega1 + omega2 ln((d + epsilon) / (omega1 + epsilon)). NaN is in neither.
template <typename T>
struct SoftWing {
  T omega1, omega2, epsilon, inverse;  // 1 / (omega1 + epsilon)

  static SoftWing of(double omega1, double omega2, double epsilon) {
    return {T(omega1), T(omega2), T(epsilon), T(1 / (omega1 + epsilon))};
  }

  template <typename F>
  PF_HOST_DEVICE F value(F difference) const {
    const F d = Arithmetic<F>::magnitude(difference);
    const F logarithm = Arithmetic<F>::log((d + epsilon) * inverse);
    const F curved = Arithmetic<F>::fused(F{} + omega2, logarithm, F{} + omega1);
    return d < omega1 ? d : curved;
  }
  template <typename F>
  PF_HOST_DEVICE F slope(F difference) const {
    constexpr T most = T(0.25) * std::numeric_limits<T>::max();  // whose reciprocal is a normal number
    const F d = Arithmetic<F>::magnitude(difference), far = d + epsilon;
    const F curved = omega2 * Arithmetic<F>::reciprocal(far > most ? F{} + most : far);
    const F size = d < omega1 ? F{} + T(1) : curved;
    return d == T(0) ? F{} : Arithmetic<F>::with_sign(size, difference);
  }
};

}  // namespace prograd
