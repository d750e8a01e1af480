#include "../../../csrc/cuda/layer_norm.h"

#include "harness.h"

PF_EXPORT const char* simt_add_layer_norm(Storage storage, const void* x, const void* branch, const void* weight,
                                          const void* bias, double eps, int64_t rows, int64_t columns, void* total,
                                          void* normed, void* statistics) {
  return caught([&] {
    add_layer_norm(storage, x, branch, weight, bias, eps, rows, columns, total, normed, statistics, nullptr);
  });
}

PF_EXPORT const char* simt_layer_norm_backward(Storage storage, void* d_total, const void* d_normed, const void* total,
                                               const void* statistics, const void* weight, int64_t cotangents,
                                               int64_t rows, int64_t columns) {
  return caught([&] {
    layer_norm_backward(storage, d_total, d_normed, total, statistics, weight, cotangents, rows, columns, nullptr);
  });
}
