// The launchers of affine_shift_out and affine_shift_backward_out; see launch.h.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../common/types.h"

namespace prograd::cuda {

// Channels that move alike: each position by `offset`, in runs of `period` positions; what leaves its run is lost.
struct ShiftGroup {
  int64_t channels, offset, period;
};

// Maps (pictures, channels, positions), and how their channels move, group by group.
struct Shift {
  const ShiftGroup* groups;
  int64_t count, pictures, channels, positions;
};

// out = scale·moved(x) + bias; scale (pictures, channels) in the arithmetic type. Scale and bias may be null.
void affine_shift(Storage storage, const void* x, const void* scale, const void* bias, void* out, const Shift& shift,
                  void* stream);

// h = moved(gradient): d_x = scale·h; d_scale (pictures, channels) = Σ h·x.
void affine_shift_backward(Storage storage, const void* gradient, const void* x, const void* scale, void* d_x,
                           void* d_scale, const Shift& shift, void* stream);

}  // namespace prograd::cuda
