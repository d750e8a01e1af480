// The launchers of local_soft_argmax_out and its backward; see launch.h.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../common/types.h"

namespace prograd::cuda {

struct HeatMaps {
  const void* values;  // (maps, height, width)
  int64_t maps, height, width, window;
  double temperature;
};

// points (maps, 2) in the arithmetic type; peaks (maps): the place of the largest value
void local_soft_argmax(Storage storage, const HeatMaps& maps, void* points, int64_t* peaks, void* stream);

// gradient (maps, 2) in the arithmetic type; d_maps as the values
void local_soft_argmax_backward(Storage storage, const HeatMaps& maps, const int64_t* peaks, const void* gradient,
                                void* d_maps, void* stream);

}  // namespace prograd::cuda
