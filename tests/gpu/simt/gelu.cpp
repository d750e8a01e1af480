#include "../../../csrc/cuda/gelu.h"

#include "harness.h"

PF_EXPORT const char* simt_gelu(Storage storage, const void* x, int64_t size, GeluApproximation approximation,
                                void* out) {
  return caught([&] { gelu(storage, x, size, approximation, out, nullptr); });
}

PF_EXPORT const char* simt_gelu_backward(Storage storage, void* gradient, int64_t cotangents, const void* x,
                                         int64_t size, GeluApproximation approximation) {
  return caught([&] { gelu_backward(storage, gradient, cotangents, x, size, approximation, nullptr); });
}
