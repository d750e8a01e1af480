// Losses of a difference, element by element, for CPU and GPU code alike.
#pragma once

#include "../common/math.h"

namespace prograd {

template <typename T>
struct SquaredError {
  PF_HOST_DEVICE T value(T difference) const { return difference * difference; }
  PF_HOST_DEVICE T slope(T difference) const { return T(2) * difference; }
};

// d = |difference|: d below omega1, else omega2 ln(1 + d / epsilon) + shift, which is continuous. NaN is in neither.
template <typename T>
struct SoftWing {
  T omega1, omega2, epsilon, shift;

  static SoftWing of(double omega1, double omega2, double epsilon) {
    return {T(omega1), T(omega2), T(epsilon), T(omega1 - omega2 * std::log1p(omega1 / epsilon))};
  }

  PF_HOST_DEVICE T value(T difference) const {
    const T d = difference < T(0) ? -difference : difference;
    const T logarithm = omega2 * log(T(1) + d / epsilon) + shift;
    return d < omega1 ? d : logarithm;
  }
  PF_HOST_DEVICE T slope(T difference) const {
    const T d = difference < T(0) ? -difference : difference;
    const T sign = difference > T(0) ? T(1) : difference < T(0) ? T(-1) : difference;  // 0 and NaN as they are
    const T curved = omega2 / (epsilon + d);
    return sign * (d < omega1 ? T(1) : curved);
  }
};

}  // namespace prograd
