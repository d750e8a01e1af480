// The launchers of gate, shift and fuse; see launch.h.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../common/types.h"

namespace prograd::cuda {

// x (clips, frames, channels, positions), of whose channels the first 2·half are used; gate (clips, 2, frames,
// positions).
struct GatedClips {
  const void *x, *gate;
  int64_t clips, frames, channels, half, positions;
};

// means (clips, 4, half, frames), phi and d_phi (clips, 2, half, frames), in the arithmetic type.
void gate_shift_means(Storage storage, const GatedClips& clips, void* means, void* stream);
void gate_shift_fuse(Storage storage, const GatedClips& clips, const void* phi, void* out, void* stream);
void gate_shift_slopes(Storage storage, const GatedClips& clips, const void* gradient, void* d_phi, void* stream);
void gate_shift_fuse_backward(Storage storage, const GatedClips& clips, const void* gradient, const void* phi,
                              const void* d_means, void* d_x, void* d_gate, void* stream);

}  // namespace prograd::cuda
