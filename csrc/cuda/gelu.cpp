// gelu_out and gelu_backward_ on CUDA tensors.
#include "gelu.h"

#include "../common/library.h"
#include "../operators/gelu.h"
#include "launch.h"

namespace prograd::cuda {
namespace {

void gelu_out(const at::Tensor& x, int64_t approximate, at::Tensor& out) {
  check_gelu(at::kCUDA, x, approximate, out);
  const Launch launch(x);
  gelu(storage_of(x.scalar_type()), x.const_data_ptr(), x.numel(), GeluApproximation(approximate),
       out.mutable_data_ptr(), launch.stream());
}

void gelu_backward_(at::Tensor& gradient, const at::Tensor& x, int64_t approximate) {
  check_gelu_backward(at::kCUDA, gradient, x, approximate);
  const Launch launch(x);
  gelu_backward(storage_of(x.scalar_type()), gradient.mutable_data_ptr(), gradient.size(0), x.const_data_ptr(),
                x.numel(), GeluApproximation(approximate), launch.stream());
}

const Registration registration(c10::DispatchKey::CUDA, [](torch::Library& library) {
  library.impl("gelu_out", TORCH_FN(gelu_out));
  library.impl("gelu_backward_", TORCH_FN(gelu_backward_));
});

}  // namespace
}  // namespace prograd::cuda
