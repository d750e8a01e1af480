// add_layer_norm_out and layer_norm_backward_ on CPU tensors.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include "../common/library.h"
#include "../common/operand.h"
#include "../operators/layer_norm.h"
#include "layer_norm.h"

namespace prograd::cpu {
namespace {

constexpr int64_t grain_size = 16384;  // elements for which a second thread pays

// Rows of so many elements for which a second thread pays.
int64_t grain_rows(int64_t width) { return std::max<int64_t>(1, grain_size / std::max<int64_t>(1, width)); }

void add_layer_norm_out(const at::Tensor& x, const at::Tensor& branch, const at::Tensor& weight, const at::Tensor& bias,
                        double eps, at::Tensor& total, at::Tensor& normed, at::Tensor& statistics) {
  check_add_layer_norm(at::kCPU, x, branch, weight, bias, total, normed, statistics);
  const int64_t rows = x.size(0), width = x.size(1);
  const AddLayerNorm all{data_of(x),
                         data_of(branch),
                         data_of(weight),
                         data_of(bias),
                         total.mutable_data_ptr(),
                         normed.mutable_data_ptr(),
                         statistics.mutable_data_ptr(),
                         width,
                         eps};
  const auto& kernels = kernels_for<LayerNormKernels>(storage_of(x.scalar_type()));
  at::parallel_for(0, rows, grain_rows(width), [&](int64_t begin, int64_t end) { kernels.forward(all, begin, end); });
}

void layer_norm_backward_(at::Tensor& d_total, const at::Tensor& d_normed, const at::Tensor& total,
                          const at::Tensor& statistics, const at::Tensor& weight) {
  check_layer_norm_backward(at::kCPU, d_total, d_normed, total, statistics, weight);
  const int64_t count = d_total.size(0), rows = d_total.size(1), width = d_total.size(2);
  const LayerNormBackward all{data_of(d_normed),
                              data_of(total),
                              data_of(statistics),
                              data_of(weight),
                              d_total.mutable_data_ptr(),
                              count,
                              rows,
                              width};
  const auto& kernels = kernels_for<LayerNormKernels>(storage_of(d_total.scalar_type()));
  at::parallel_for(0, rows, grain_rows(count * width),
                   [&](int64_t begin, int64_t end) { kernels.backward(all, begin, end); });
}

const Registration registration(c10::DispatchKey::CPU, [](torch::Library& library) {
  library.impl("add_layer_norm_out", TORCH_FN(add_layer_norm_out));
  library.impl("layer_norm_backward_", TORCH_FN(layer_norm_backward_));
});

}  // namespace
}  // namespace prograd::cpu
