#include "../../../csrc/cuda/affine_shift.h"

#include "harness.h"

PF_EXPORT const char* simt_affine_shift(Storage storage, const void* x, const void* scale, const void* bias, void* out,
                                        const Shift* shift) {
  return caught([&] { affine_shift(storage, x, scale, bias, out, *shift, nullptr); });
}

PF_EXPORT const char* simt_affine_shift_backward(Storage storage, const void* gradient, const void* x,
                                                 const void* scale, void* d_x, void* d_scale, const Shift* shift) {
  return caught([&] { affine_shift_backward(storage, gradient, x, scale, d_x, d_scale, *shift, nullptr); });
}
