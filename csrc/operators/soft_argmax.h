// What local_soft_argmax_out and its backward ask of their arguments.
#pragma once

#include "../common/arguments.h"

namespace prograd {

inline Arguments check_soft_argmax(c10::DeviceType type, const at::Tensor& maps, int64_t window, double temperature) {
  const Arguments arguments("maps", maps, type);
  arguments.dimensions("maps", maps, 4);
  TORCH_CHECK_VALUE(maps.size(0) * maps.size(1) == 0 || maps.numel() > 0,
                    "maps: expected at least one pixel, got shape ", maps.sizes(), ".");
  TORCH_CHECK_VALUE(0 < window && window < 64 && window % 2 == 1,
                    "window: expected an odd number of pixels below 64, got ", window, ".");
  check_positive("temperature", temperature);
  return arguments;
}

inline void check_local_soft_argmax(c10::DeviceType type, const at::Tensor& maps, int64_t window, double temperature,
                                    const at::Tensor& points, const at::Tensor& peaks) {
  const Arguments arguments = check_soft_argmax(type, maps, window, temperature);
  arguments.result("points", points, {maps.size(0), maps.size(1), 2});
  arguments.integer_result("peaks", peaks, {maps.size(0), maps.size(1)});
}

inline void check_local_soft_argmax_backward(c10::DeviceType type, const at::Tensor& gradient, const at::Tensor& maps,
                                             const at::Tensor& peaks, int64_t window, double temperature,
                                             const at::Tensor& d_maps) {
  const Arguments arguments = check_soft_argmax(type, maps, window, temperature);
  arguments.floating("gradient", gradient, {maps.size(0), maps.size(1), 2});
  arguments.integers("peaks", peaks, {maps.size(0), maps.size(1)});
  arguments.result("d_maps", d_maps, maps.sizes());
}

}  // namespace prograd
