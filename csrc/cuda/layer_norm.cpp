// add_layer_norm_out and layer_norm_backward_ on CUDA tensors.
#include "layer_norm.h"

#include "../common/library.h"
#include "../operators/layer_norm.h"
#include "launch.h"

namespace prograd::cuda {
namespace {

void add_layer_norm_out(const at::Tensor& x, const at::Tensor& branch, const at::Tensor& weight, const at::Tensor& bias,
                        double eps, at::Tensor& total, at::Tensor& normed, at::Tensor& statistics) {
  check_add_layer_norm(at::kCUDA, x, branch, weight, bias, total, normed, statistics);
  const Launch launch(x);
  add_layer_norm(storage_of(x.scalar_type()), x.const_data_ptr(), branch.const_data_ptr(), weight.const_data_ptr(),
                 bias.const_data_ptr(), eps, x.size(0), x.size(1), total.mutable_data_ptr(), normed.mutable_data_ptr(),
                 statistics.mutable_data_ptr(), launch.stream());
}

void layer_norm_backward_(at::Tensor& d_total, const at::Tensor& d_normed, const at::Tensor& total,
                          const at::Tensor& statistics, const at::Tensor& weight) {
  check_layer_norm_backward(at::kCUDA, d_total, d_normed, total, statistics, weight);
  const Launch launch(d_total);
  layer_norm_backward(storage_of(d_total.scalar_type()), d_total.mutable_data_ptr(), d_normed.const_data_ptr(),
                      total.const_data_ptr(), statistics.const_data_ptr(), weight.const_data_ptr(), d_total.size(0),
                      d_total.size(1), d_total.size(2), launch.stream());
}

const Registration registration(c10::DispatchKey::CUDA, [](torch::Library& library) {
  library.impl("add_layer_norm_out", TORCH_FN(add_layer_norm_out));
  library.impl("layer_norm_backward_", TORCH_FN(layer_norm_backward_));
});

}  // namespace
}  // namespace prograd::cuda
