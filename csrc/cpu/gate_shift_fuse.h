// The kernels of gate, shift and fuse.
#pragma once

#include "dispatch.h"

namespace prograd::cpu {

// One channel of one frame, and of the frame that it takes from; that one is null outside of the clip.
struct GatedPlane {
  const void *u, *gate, *other_u, *other_gate;
  std::int64_t n;
};

// d_rest = slope·gradient + offset, and the gradient of what moves away from here: the same of the frame that it moves
// to, whose gradient is null outside of the clip.
struct GatedGradient {
  const void *gradient, *other_gradient;
  double slope, offset, other_slope, other_offset;
};

struct GateShiftKernels {
  // Σ gate·u and Σ (u - gate·u)
  void (*sums)(const GatedPlane& plane, double* passed, double* rest);

  // out = phi·(what came) + (1 - phi)·(u - gate·u)
  void (*fuse)(const GatedPlane& plane, double phi, void* out, bool past_caches);

  // Σ gradient·(what came - (u - gate·u))
  double (*slope)(const GatedPlane& plane, const void* gradient);

  // d_u, and what is added to d_gate, in the accumulation dtype, of the gate that many planes share.
  void (*backward)(const void* u, const void* gate, const GatedGradient& gradient, void* d_u, void* d_gate,
                   std::int64_t n, bool past_caches);
};

}  // namespace prograd::cpu
