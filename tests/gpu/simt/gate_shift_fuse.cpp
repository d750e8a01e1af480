#include "../../../csrc/cuda/gate_shift_fuse.h"

#include "harness.h"

PF_EXPORT const char* simt_gate_shift_means(Storage storage, const GatedClips* clips, void* means) {
  return caught([&] { gate_shift_means(storage, *clips, means, nullptr); });
}

PF_EXPORT const char* simt_gate_shift_fuse(Storage storage, const GatedClips* clips, const void* phi, void* out) {
  return caught([&] { gate_shift_fuse(storage, *clips, phi, out, nullptr); });
}

PF_EXPORT const char* simt_gate_shift_slopes(Storage storage, const GatedClips* clips, const void* gradient,
                                             void* d_phi) {
  return caught([&] { gate_shift_slopes(storage, *clips, gradient, d_phi, nullptr); });
}

PF_EXPORT const char* simt_gate_shift_fuse_backward(Storage storage, const GatedClips* clips, const void* gradient,
                                                    const void* phi, const void* d_means, void* d_x, void* d_gate) {
  return caught([&] { gate_shift_fuse_backward(storage, *clips, gradient, phi, d_means, d_x, d_gate, nullptr); });
}
