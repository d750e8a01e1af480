// The kernels of affine_shift_out and affine_shift_backward_out.
#pragma once

#include "dispatch.h"

namespace prograd::cpu {

// How the n positions of one channel move: each by `offset`. They are n / period runs along the axis, and what leaves a
// run is lost.
struct Move {
  std::int64_t n, offset, period;
};

struct AffineShiftKernels {
  // out = scale·moved(x) + bias of one channel; bias may be null
  void (*forward)(const void* x, const void* bias, void* out, double scale, Move, bool past_caches);

  // h = moved(gradient), d_x = scale·h; returns Σ h·x
  double (*backward)(const void* gradient, const void* x, void* d_x, double scale, Move, bool past_caches);
};

}  // namespace prograd::cpu
