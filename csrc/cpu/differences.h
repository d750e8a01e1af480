// The kernel of difference_loss_out.
#pragma once

#include "dispatch.h"

namespace prograd::cpu {

struct Difference {
  const void *prediction, *target;
  void* cotangents;  // in the accumulation dtype
  bool soft_wing;
  double omega1, omega2, epsilon, factor;
};

struct DifferenceKernels {
  // Sum of f(prediction - target) over n elements, f the square or Soft Wing's function; cotangents = factor f'.
  double (*loss)(const Difference&, std::int64_t n);
};

}  // namespace prograd::cpu
