// The operators of the prompt encoder on CUDA tensors.
#include "../checks.h"
#include "../operators.h"
#include "launch.h"

namespace prograd::cuda {
namespace {

// Rows of a tensor (G, rows, columns) or (K, G, rows, columns). The stride of a single row or group means nothing.
Rows rows_of(const at::Tensor& tensor) {
  const auto stride = [&](int64_t from_last) {
    const int64_t dim = tensor.dim() - from_last;
    return dim >= 0 && tensor.size(dim) > 1 ? tensor.stride(dim) : 0;
  };
  return {const_cast<void*>(tensor.const_data_ptr()), stride(4), stride(3), stride(2)};
}

// The arguments of attention for a launch; offsets is kept alive by the caller.
Attention attention_of(const at::Tensor& query, const at::Tensor& key_value, const at::Tensor& prefix,
                       const at::Tensor& offsets, int64_t heads, double scale, bool last) {
  const int64_t columns = query.size(2);
  TORCH_CHECK_VALUE(columns / heads <= kMaxHeadWidth, "heads: expected heads of at most ", kMaxHeadWidth,
                    " columns, got ", columns / heads, ": use another backend.");
  return {rows_of(query),
          rows_of(key_value),
          rows_of(prefix),
          offsets.const_data_ptr<int64_t>(),
          query.size(0),
          query.size(1),
          key_value.size(1),
          prefix.size(1),
          offsets.numel() - 1,
          int(heads),
          int(columns / heads),
          scale,
          last};
}

}  // namespace

void shared_prefix_attention_out(const at::Tensor& query, const at::Tensor& key_value, const at::Tensor& prefix,
                                 const at::Tensor& offsets_, int64_t heads, double scale, bool last, at::Tensor& out) {
  const Arguments arguments = check_attention(at::kCUDA, query, key_value, prefix, offsets_, heads, last);
  arguments.rows("out", out, query.scalar_type(), query.sizes(), true);
  const Launch launch(query);
  const at::Tensor offsets = offsets_.contiguous();
  shared_prefix_attention(storage_of(query.scalar_type()),
                          attention_of(query, key_value, prefix, offsets, heads, scale, last), rows_of(out),
                          launch.stream());
}

void shared_prefix_attention_backward_out(const at::Tensor& gradient, const at::Tensor& query,
                                          const at::Tensor& key_value, const at::Tensor& prefix,
                                          const at::Tensor& offsets_, int64_t heads, double scale, bool last,
                                          at::Tensor& d_query, at::Tensor& d_key_value, at::Tensor& d_prefix) {
  const Arguments arguments = check_attention(at::kCUDA, query, key_value, prefix, offsets_, heads, last);
  check_attention_backward(arguments, gradient, query, key_value, prefix, d_query, d_key_value, d_prefix);
  const Launch launch(query);
  const at::Tensor offsets = offsets_.contiguous();
  const Storage storage = storage_of(query.scalar_type());
  const Attention attention = attention_of(query, key_value, prefix, offsets, heads, scale, last);
  const at::Tensor workspace = launch.workspace(shared_prefix_attention_backward_workspace(storage, attention));
  shared_prefix_attention_backward(storage, attention, gradient.size(0), rows_of(gradient), rows_of(d_query),
                                   rows_of(d_key_value), rows_of(d_prefix), workspace.mutable_data_ptr(),
                                   launch.stream());
}

void add_layer_norm_out(const at::Tensor& x, const at::Tensor& branch, const at::Tensor& weight,
                        const at::Tensor& bias, double eps, at::Tensor& total, at::Tensor& normed,
                        at::Tensor& statistics) {
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

void gelu_out(const at::Tensor& x, int64_t approximate, at::Tensor& out) {
  check_gelu(at::kCUDA, x, approximate, out);
  const Launch launch(x);
  gelu(storage_of(x.scalar_type()), x.const_data_ptr(), x.numel(), Approximate(approximate), out.mutable_data_ptr(),
       launch.stream());
}

void gelu_backward_(at::Tensor& gradient, const at::Tensor& x, int64_t approximate) {
  check_gelu_backward(at::kCUDA, gradient, x, approximate);
  const Launch launch(x);
  gelu_backward(storage_of(x.scalar_type()), gradient.mutable_data_ptr(), gradient.size(0), x.const_data_ptr(),
                x.numel(), Approximate(approximate), launch.stream());
}

}  // namespace prograd::cuda
