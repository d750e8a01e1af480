// The kernels of add_layer_norm_out and layer_norm_backward_.
#pragma once

#include "dispatch.h"

namespace prograd::cpu {

// total = x + branch and its norm. Weight, bias and statistics (rows, 2) are in the accumulation dtype.
struct AddLayerNorm {
  const void *x, *branch, *weight, *bias;
  void *total, *normed, *statistics;
  std::int64_t width;
  double eps;
};

// The gradients through it: d_total (count, rows, width) += those from d_normed.
struct LayerNormBackward {
  const void *d_normed, *total, *statistics, *weight;
  void* d_total;
  std::int64_t count, rows, width;
};

struct LayerNormKernels {  // of rows [begin, end)
  void (*forward)(const AddLayerNorm&, std::int64_t begin, std::int64_t end);
  void (*backward)(const LayerNormBackward&, std::int64_t begin, std::int64_t end);
};

}  // namespace prograd::cpu
