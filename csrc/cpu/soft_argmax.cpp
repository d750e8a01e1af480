// The local soft-argmax and its backward on CPU tensors.
#include "soft_argmax.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <tuple>

#include "../common/kept_memory.h"
#include "../common/large.h"
#include "../common/library.h"
#include "../common/operand.h"
#include "../operators/soft_argmax.h"

namespace prograd::cpu {
namespace {

constexpr int64_t grain_size = 16384;  // values for which a second thread pays

// body(i, map) for every map, whatever thread it runs on.
template <typename Body>
void each_map(const at::Tensor& maps, int64_t window, double temperature, const Body& body) {
  const int64_t height = maps.size(2), width = maps.size(3), size = height * width;
  const auto* values = static_cast<const char*>(data_of(maps));
  const int64_t bytes = size * int64_t(maps.itemsize());
  at::parallel_for(0, maps.size(0) * maps.size(1), std::max<int64_t>(1, grain_size / std::max<int64_t>(1, size)),
                   [&](int64_t begin, int64_t end) {
                     for (int64_t i = begin; i < end; ++i) {
                       body(i, HeatMap{values + i * bytes, height, width, window, temperature});
                     }
                   });
}

void local_soft_argmax_out(const at::Tensor& maps, int64_t window, double temperature, at::Tensor& points,
                           at::Tensor& peaks) {
  check_local_soft_argmax(at::kCPU, maps, window, temperature, points, peaks);
  const at::Tensor h = contiguous(maps, maps.scalar_type());
  const Written point(points, accumulation_dtype(h.scalar_type())), peak(peaks, at::kLong);
  const int64_t bytes = 2 * int64_t(point.tensor().itemsize());
  auto* places = peak.tensor().mutable_data_ptr<int64_t>();
  const auto& kernels = kernels_for<SoftArgmaxKernels>(storage_of(h.scalar_type()));
  each_map(h, window, temperature,
           [&](int64_t i, const HeatMap& map) { places[i] = kernels.point(map, point.data() + i * bytes); });
  point.write_back();
  peak.write_back();
}

void local_soft_argmax_backward_out(const at::Tensor& gradient, const at::Tensor& maps, const at::Tensor& peaks,
                                    int64_t window, double temperature, at::Tensor& d_maps) {
  check_local_soft_argmax_backward(at::kCPU, gradient, maps, peaks, window, temperature, d_maps);
  const at::Tensor h = contiguous(maps, maps.scalar_type()), peak = peaks.contiguous();
  const at::Tensor g = contiguous(gradient, accumulation_dtype(h.scalar_type()));
  const Written written(d_maps, h.scalar_type());
  prefer_huge_pages(written.data(), written.tensor().nbytes());
  const int64_t size = h.size(2) * h.size(3), bytes = size * int64_t(h.itemsize());
  const auto& kernels = kernels_for<SoftArgmaxKernels>(storage_of(h.scalar_type()));
  const auto* gradients = static_cast<const char*>(data_of(g));
  const auto* places = peak.const_data_ptr<int64_t>();
  const bool past_caches = int64_t(written.tensor().nbytes()) >= stream_bytes;
  each_map(h, window, temperature, [&](int64_t i, const HeatMap& map) {
    TORCH_CHECK_VALUE(0 <= places[i] && places[i] < size, "peaks: expected places from 0 to ", size - 1, ", got ",
                      places[i], ".");
    kernels.backward(map, places[i], gradients + i * 2 * int64_t(g.itemsize()), written.data() + i * bytes,
                     past_caches);
  });
  written.write_back();
}

std::tuple<at::Tensor, at::Tensor> local_soft_argmax(const at::Tensor& maps, int64_t window, double temperature) {
  check_soft_argmax(at::kCPU, maps, window, temperature);
  const at::IntArrayRef each = maps.sizes().slice(0, 2);
  at::Tensor points = at::empty({each[0], each[1], 2}, maps.options().dtype(accumulation_dtype(maps.scalar_type())));
  at::Tensor peaks = at::empty(each, maps.options().dtype(at::kLong));
  local_soft_argmax_out(maps, window, temperature, points, peaks);
  return {points, peaks};
}

at::Tensor local_soft_argmax_backward(const at::Tensor& gradient, const at::Tensor& maps, const at::Tensor& peaks,
                                      int64_t window, double temperature) {
  check_soft_argmax(at::kCPU, maps, window, temperature);
  at::Tensor d_maps = empty_in_kept_memory(maps.sizes(), maps.options());
  local_soft_argmax_backward_out(gradient, maps, peaks, window, temperature, d_maps);
  return d_maps;
}

const Registration registration(c10::DispatchKey::CPU, [](torch::Library& library) {
  library.impl("local_soft_argmax", TORCH_FN(local_soft_argmax));
  library.impl("local_soft_argmax_out", TORCH_FN(local_soft_argmax_out));
  library.impl("local_soft_argmax_backward", TORCH_FN(local_soft_argmax_backward));
  library.impl("local_soft_argmax_backward_out", TORCH_FN(local_soft_argmax_backward_out));
});

}  // namespace
}  // namespace prograd::cpu
