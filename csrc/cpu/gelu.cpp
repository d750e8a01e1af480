// gelu_out and gelu_backward_ on CPU tensors.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include "../common/library.h"
#include "../common/operand.h"
#include "../operators/gelu.h"
#include "gelu.h"

namespace prograd::cpu {
namespace {

constexpr int64_t grain_size = 16384;  // elements for which a second thread pays

void gelu_out(const at::Tensor& x, int64_t approximate, at::Tensor& out) {
  check_gelu(at::kCPU, x, approximate, out);
  const auto approximation = GeluApproximation(approximate);
  const auto& kernels = kernels_for<GeluKernels>(storage_of(x.scalar_type()));
  const char* from = static_cast<const char*>(data_of(x));
  char* to = static_cast<char*>(out.mutable_data_ptr());
  const int64_t size = x.itemsize();
  at::parallel_for(0, x.numel(), grain_size, [&](int64_t begin, int64_t end) {
    kernels.forward(from + begin * size, to + begin * size, end - begin, approximation);
  });
}

void gelu_backward_(at::Tensor& gradient, const at::Tensor& x, int64_t approximate) {
  check_gelu_backward(at::kCPU, gradient, x, approximate);
  const auto approximation = GeluApproximation(approximate);
  const int64_t count = gradient.size(0), n = x.numel(), size = x.itemsize();
  const auto& kernels = kernels_for<GeluKernels>(storage_of(x.scalar_type()));
  const char* from = static_cast<const char*>(data_of(x));
  char* to = static_cast<char*>(gradient.mutable_data_ptr());
  at::parallel_for(0, n, grain_size, [&](int64_t begin, int64_t end) {
    kernels.backward(from + begin * size, to + begin * size, end - begin, count, n, approximation);
  });
}

const Registration registration(c10::DispatchKey::CPU, [](torch::Library& library) {
  library.impl("gelu_out", TORCH_FN(gelu_out));
  library.impl("gelu_backward_", TORCH_FN(gelu_backward_));
});

}  // namespace
}  // namespace prograd::cpu
