// The kernels of the local soft-argmax and its backward.
#pragma once

#include "dispatch.h"

namespace prograd::cpu {

struct HeatMap {
  const void* values;  // (height, width)
  std::int64_t height, width, window;
  double temperature;
};

struct SoftArgmaxKernels {
  // Writes x and y in the accumulation dtype, and returns the place of the largest value.
  std::int64_t (*point)(const HeatMap&, void* point);

  // peak: that place, in the map; gradient: of x and y, in the accumulation dtype; d_values: as the values, all written
  void (*backward)(const HeatMap&, std::int64_t peak, const void* gradient, void* d_values, bool past_caches);
};

}  // namespace prograd::cpu
