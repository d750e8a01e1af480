// add_layer_norm_out, layer_norm_backward_, gelu_out and gelu_backward_ on CPU tensors.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include "../checks.h"
#include "../operators.h"
#include "kernels.h"
#include "operand.h"

namespace prograd::cpu {
namespace {

constexpr int64_t grain_size = 16384;  // elements for which a second thread pays

// Rows of so many elements for which a second thread pays.
int64_t grain_rows(int64_t width) { return std::max<int64_t>(1, grain_size / std::max<int64_t>(1, width)); }

void* pointer(const at::Tensor& tensor) { return tensor.mutable_data_ptr(); }

}  // namespace

void add_layer_norm_out(const at::Tensor& x, const at::Tensor& branch, const at::Tensor& weight, const at::Tensor& bias,
                        double eps, at::Tensor& total, at::Tensor& normed, at::Tensor& statistics) {
  check_add_layer_norm(at::kCPU, x, branch, weight, bias, total, normed, statistics);
  const int64_t rows = x.size(0), width = x.size(1);
  const Storage storage = storage_of(x.scalar_type());
  const Kernels::AddLayerNorm all{data_of(x),     data_of(branch),  data_of(weight),     data_of(bias),
                                  pointer(total), pointer(normed), pointer(statistics), width, eps};
  const Kernels& table = kernels();
  at::parallel_for(0, rows, grain_rows(width),
                   [&](int64_t begin, int64_t end) { table.add_layer_norm(storage, all, begin, end); });
}

void layer_norm_backward_(at::Tensor& d_total, const at::Tensor& d_normed, const at::Tensor& total,
                          const at::Tensor& statistics, const at::Tensor& weight) {
  check_layer_norm_backward(at::kCPU, d_total, d_normed, total, statistics, weight);
  const int64_t count = d_total.size(0), rows = d_total.size(1), width = d_total.size(2);
  const Storage storage = storage_of(d_total.scalar_type());
  const Kernels::LayerNormBackward all{
      data_of(d_normed), data_of(total), data_of(statistics), data_of(weight), pointer(d_total), count, rows, width};
  const Kernels& table = kernels();
  at::parallel_for(0, rows, grain_rows(count * width),
                   [&](int64_t begin, int64_t end) { table.layer_norm_backward(storage, all, begin, end); });
}

void gelu_out(const at::Tensor& x, int64_t approximate, at::Tensor& out) {
  check_gelu(at::kCPU, x, approximate, out);
  const Storage storage = storage_of(x.scalar_type());
  const Approximate formula = Approximate(approximate);
  const Kernels& table = kernels();
  const char* from = static_cast<const char*>(data_of(x));
  char* to = static_cast<char*>(pointer(out));
  const int64_t size = x.itemsize();
  at::parallel_for(0, x.numel(), grain_size, [&](int64_t begin, int64_t end) {
    table.gelu(storage, from + begin * size, to + begin * size, end - begin, formula);
  });
}

void gelu_backward_(at::Tensor& gradient, const at::Tensor& x, int64_t approximate) {
  check_gelu_backward(at::kCPU, gradient, x, approximate);
  const Storage storage = storage_of(x.scalar_type());
  const Approximate formula = Approximate(approximate);
  const int64_t count = gradient.size(0), n = x.numel(), size = x.itemsize();
  const Kernels& table = kernels();
  const char* from = static_cast<const char*>(data_of(x));
  char* to = static_cast<char*>(pointer(gradient));
  at::parallel_for(0, n, grain_size, [&](int64_t begin, int64_t end) {
    table.gelu_backward(storage, from + begin * size, to + begin * size, end - begin, count, n, formula);
  });
}

}  // namespace prograd::cpu
