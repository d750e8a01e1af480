// local_soft_argmax_out and its backward on CUDA tensors.
#include "soft_argmax.h"

#include "../common/library.h"
#include "../operators/soft_argmax.h"
#include "launch.h"

namespace prograd::cuda {
namespace {

HeatMaps heat_maps(const at::Tensor& h, int64_t window, double temperature) {
  return {h.const_data_ptr(), h.size(0) * h.size(1), h.size(2), h.size(3), window, temperature};
}

void local_soft_argmax_out(const at::Tensor& maps, int64_t window, double temperature, at::Tensor& points,
                           at::Tensor& peaks) {
  check_local_soft_argmax(at::kCUDA, maps, window, temperature, points, peaks);
  const Launch launch(maps);
  const at::ScalarType dtype = maps.scalar_type();
  const at::Tensor h = launch.operand(maps, dtype, "maps");
  const Written point(points, accumulation_dtype(dtype)), peak(peaks, at::kLong);
  local_soft_argmax(storage_of(dtype), heat_maps(h, window, temperature), point.data(),
                    peak.tensor().mutable_data_ptr<int64_t>(), launch.stream());
  point.write_back();
  peak.write_back();
}

void local_soft_argmax_backward_out(const at::Tensor& gradient, const at::Tensor& maps, const at::Tensor& peaks,
                                    int64_t window, double temperature, at::Tensor& d_maps) {
  check_local_soft_argmax_backward(at::kCUDA, gradient, maps, peaks, window, temperature, d_maps);
  const Launch launch(maps);
  const at::ScalarType dtype = maps.scalar_type();
  const at::Tensor h = launch.operand(maps, dtype, "maps");
  const at::Tensor g = launch.operand(gradient, accumulation_dtype(dtype), "gradient");
  const at::Tensor peak = launch.operand(peaks, at::kLong, "peaks");
  const Written written(d_maps, dtype);
  local_soft_argmax_backward(storage_of(dtype), heat_maps(h, window, temperature), peak.const_data_ptr<int64_t>(),
                             g.const_data_ptr(), written.data(), launch.stream());
  written.write_back();
}

const Registration registration(c10::DispatchKey::CUDA, [](torch::Library& library) {
  library.impl("local_soft_argmax_out", TORCH_FN(local_soft_argmax_out));
  library.impl("local_soft_argmax_backward_out", TORCH_FN(local_soft_argmax_backward_out));
});

}  // namespace
}  // namespace prograd::cuda
