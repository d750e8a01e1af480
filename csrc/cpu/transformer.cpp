// add_layer_norm_out, layer_norm_backward_, gelu_out and gelu_backward_ on CPU tensors.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>

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
  TORCH_CHECK_VALUE(x.dim() == 2, "x: expected 2 dimensions, got ", x.dim(), ".");
  const int64_t rows = x.size(0), width = x.size(1);
  const at::ScalarType dtype = x.scalar_type(), accumulation = accumulation_dtype(dtype);
  const Storage storage = storage_of(dtype);
  for (const auto& [name, tensor] : {std::pair("x", x), {"branch", branch}, {"total", total}, {"normed", normed}}) {
    check_contiguous(name, tensor, dtype, {rows, width});
  }
  check_contiguous("weight", weight, accumulation, {width});
  check_contiguous("bias", bias, accumulation, {width});
  check_contiguous("statistics", statistics, accumulation, {rows, 2});
  const Kernels::AddLayerNorm all{data_of(x),     data_of(branch),  data_of(weight),     data_of(bias),
                                  pointer(total), pointer(normed), pointer(statistics), width, eps};
  const Kernels& table = kernels();
  at::parallel_for(0, rows, grain_rows(width),
                   [&](int64_t begin, int64_t end) { table.add_layer_norm(storage, all, begin, end); });
}

void layer_norm_backward_(at::Tensor& d_total, const at::Tensor& d_normed, const at::Tensor& total,
                          const at::Tensor& statistics, const at::Tensor& weight) {
  TORCH_CHECK_VALUE(d_total.dim() == 3, "d_total: expected 3 dimensions, got ", d_total.dim(), ".");
  const int64_t count = d_total.size(0), rows = d_total.size(1), width = d_total.size(2);
  const at::ScalarType dtype = d_total.scalar_type(), accumulation = accumulation_dtype(dtype);
  const Storage storage = storage_of(dtype);
  check_contiguous("d_total", d_total, dtype, {count, rows, width});
  check_contiguous("d_normed", d_normed, dtype, {count, rows, width});
  check_contiguous("total", total, dtype, {rows, width});
  check_contiguous("statistics", statistics, accumulation, {rows, 2});
  check_contiguous("weight", weight, accumulation, {width});
  const Kernels::LayerNormBackward all{
      data_of(d_normed), data_of(total), data_of(statistics), data_of(weight), pointer(d_total), count, rows, width};
  const Kernels& table = kernels();
  at::parallel_for(0, rows, grain_rows(count * width),
                   [&](int64_t begin, int64_t end) { table.layer_norm_backward(storage, all, begin, end); });
}

void gelu_out(const at::Tensor& x, int64_t approximate, at::Tensor& out) {
  const Storage storage = storage_of(x.scalar_type());
  const Approximate formula = approximation(approximate);
  check_contiguous("x", x, x.scalar_type(), x.sizes());
  check_contiguous("out", out, x.scalar_type(), x.sizes());
  const Kernels& table = kernels();
  const char* from = static_cast<const char*>(data_of(x));
  char* to = static_cast<char*>(pointer(out));
  const int64_t size = x.itemsize();
  at::parallel_for(0, x.numel(), grain_size, [&](int64_t begin, int64_t end) {
    table.gelu(storage, from + begin * size, to + begin * size, end - begin, formula);
  });
}

void gelu_backward_(at::Tensor& gradient, const at::Tensor& x, int64_t approximate) {
  const Storage storage = storage_of(x.scalar_type());
  const Approximate formula = approximation(approximate);
  TORCH_CHECK_VALUE(gradient.dim() == x.dim() + 1, "gradient: expected ", x.dim() + 1, " dimensions, got ",
                    gradient.dim(), ".");
  const int64_t count = gradient.size(0), n = x.numel(), size = x.itemsize();
  c10::SmallVector<int64_t, 5> sizes(x.sizes());
  sizes.insert(sizes.begin(), count);
  check_contiguous("x", x, x.scalar_type(), x.sizes());
  check_contiguous("gradient", gradient, x.scalar_type(), sizes);
  const Kernels& table = kernels();
  const char* from = static_cast<const char*>(data_of(x));
  char* to = static_cast<char*>(pointer(gradient));
  at::parallel_for(0, n, grain_size, [&](int64_t begin, int64_t end) {
    table.gelu_backward(storage, from + begin * size, to + begin * size, end - begin, count, n, formula);
  });
}

}  // namespace prograd::cpu
