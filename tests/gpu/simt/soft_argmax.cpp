#include "../../../csrc/cuda/soft_argmax.h"

#include "harness.h"

PF_EXPORT const char* simt_local_soft_argmax(Storage storage, const HeatMaps* maps, void* points, int64_t* peaks) {
  return caught([&] { local_soft_argmax(storage, *maps, points, peaks, nullptr); });
}

PF_EXPORT const char* simt_local_soft_argmax_backward(Storage storage, const HeatMaps* maps, const int64_t* peaks,
                                                      const void* gradient, void* d_maps) {
  return caught([&] { local_soft_argmax_backward(storage, *maps, peaks, gradient, d_maps, nullptr); });
}
