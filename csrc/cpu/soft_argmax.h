// The kernels of local_soft_argmax_out and its backward.
#pragma once

#include "dispatch.h"

namespace prograd::cpu {

struct HeatMap {
  const void* values;  // (height, width)
  std::int64_t height, width, window;
  double temperature;
};

struct SoftArgmaxKernels {
  void (*point)(const HeatMap&, void* point);  // x, y in the accumulation dtype
  // gradient: of x and y, in the accumulation dtype; d_values: as the values, all of them written
  void (*backward)(const HeatMap&, const void* gradient, void* d_values, bool past_caches);
};

}  // namespace prograd::cpu
