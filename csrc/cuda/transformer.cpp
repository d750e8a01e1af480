// The operators of the prompt encoder on CUDA tensors.
#include "../operators.h"
#include "launch.h"

namespace prograd::cuda {
namespace {

using cpu::approximation;
using cpu::check_contiguous;
using cpu::check_rows;

// Rows of a tensor (G, rows, columns) or (K, G, rows, columns). The stride of a single row or group means nothing.
Rows rows_of(const at::Tensor& tensor) {
  const auto stride = [&](int64_t from_last) {
    const int64_t dim = tensor.dim() - from_last;
    return dim >= 0 && tensor.size(dim) > 1 ? tensor.stride(dim) : 0;
  };
  return {const_cast<void*>(tensor.const_data_ptr()), stride(4), stride(3), stride(2)};
}

// The arguments of attention, checked, and kept alive for a launch.
class AttentionOperands {
 public:
  AttentionOperands(const Launch& launch, const at::Tensor& query, const at::Tensor& key_value,
                    const at::Tensor& prefix, const at::Tensor& offsets, int64_t heads, double scale, bool last)
      : launch_(launch), dtype_(query.scalar_type()), offsets_(launch.operand(offsets, at::kLong, "offsets")) {
    TORCH_CHECK_VALUE(offsets.dim() == 1 && offsets.numel() > 0, "offsets: expected shape (segments + 1,), got ",
                      offsets.sizes(), ".");
    const int64_t groups = query.size(0), columns = query.size(2), rows = key_value.size(1);
    const int64_t segments = offsets.numel() - 1, prefix_rows = prefix.size(1);
    TORCH_CHECK_VALUE(heads > 0 && columns % heads == 0, "heads: expected a divisor of ", columns, ", got ", heads,
                      ".");
    TORCH_CHECK_VALUE(columns / heads <= kMaxHeadWidth, "heads: expected heads of at most ", kMaxHeadWidth,
                      " columns, got ", columns / heads, ": use another backend.");
    check("query", query, {groups, last ? segments : rows, columns});
    check("key_value", key_value, {groups, rows, 2 * columns});
    check("prefix", prefix, {groups, prefix_rows, 2 * columns});
    attention = {rows_of(query),
                 rows_of(key_value),
                 rows_of(prefix),
                 offsets_.const_data_ptr<int64_t>(),
                 groups,
                 query.size(1),
                 rows,
                 prefix_rows,
                 segments,
                 int(heads),
                 int(columns / heads),
                 scale,
                 last};
  }

  void check(const char* name, const at::Tensor& tensor, at::IntArrayRef sizes) const {
    launch_.check_device(tensor, name);
    check_rows(name, tensor, dtype_, sizes);
  }

  // The same for one that has the sizes of `like` for each cotangent.
  void check_each(const char* name, const at::Tensor& tensor, int64_t cotangents, const at::Tensor& like) const {
    check(name, tensor, {cotangents, like.size(0), like.size(1), like.size(2)});
  }

  Attention attention;
  Storage storage() const { return storage_of(dtype_); }

 private:
  const Launch& launch_;
  at::ScalarType dtype_;
  at::Tensor offsets_;
};

// Contiguous tensors, for the operators that take no others.
class Contiguous {
 public:
  Contiguous(const Launch& launch, const at::Tensor& like) : launch_(launch), dtype_(like.scalar_type()) {}

  void check(const char* name, const at::Tensor& tensor, at::IntArrayRef sizes) const {
    check(name, tensor, dtype_, sizes);
  }
  void check_wide(const char* name, const at::Tensor& tensor, at::IntArrayRef sizes) const {
    check(name, tensor, accumulation_dtype(dtype_), sizes);
  }
  Storage storage() const { return storage_of(dtype_); }

 private:
  void check(const char* name, const at::Tensor& tensor, at::ScalarType dtype, at::IntArrayRef sizes) const {
    launch_.check_device(tensor, name);
    check_contiguous(name, tensor, dtype, sizes);
  }

  const Launch& launch_;
  at::ScalarType dtype_;
};

}  // namespace

void shared_prefix_attention_out(const at::Tensor& query, const at::Tensor& key_value, const at::Tensor& prefix,
                                 const at::Tensor& offsets, int64_t heads, double scale, bool last, at::Tensor& out) {
  const Launch launch(query);
  const AttentionOperands operands(launch, query, key_value, prefix, offsets, heads, scale, last);
  operands.check("out", out, query.sizes());
  shared_prefix_attention(operands.storage(), operands.attention, rows_of(out), launch.stream());
}

void shared_prefix_attention_backward_out(const at::Tensor& gradient, const at::Tensor& query,
                                          const at::Tensor& key_value, const at::Tensor& prefix,
                                          const at::Tensor& offsets, int64_t heads, double scale, bool last,
                                          at::Tensor& d_query, at::Tensor& d_key_value, at::Tensor& d_prefix) {
  const Launch launch(query);
  const AttentionOperands operands(launch, query, key_value, prefix, offsets, heads, scale, last);
  const int64_t cotangents = gradient.size(0);
  operands.check_each("gradient", gradient, cotangents, query);
  operands.check_each("d_query", d_query, cotangents, query);
  operands.check_each("d_key_value", d_key_value, cotangents, key_value);
  operands.check_each("d_prefix", d_prefix, cotangents, prefix);
  const size_t bytes = shared_prefix_attention_backward_workspace(operands.storage(), operands.attention);
  const at::Tensor workspace = launch.workspace(bytes);
  shared_prefix_attention_backward(operands.storage(), operands.attention, cotangents, rows_of(gradient),
                                   rows_of(d_query), rows_of(d_key_value), rows_of(d_prefix),
                                   workspace.mutable_data_ptr(), launch.stream());
}

void add_layer_norm_out(const at::Tensor& x, const at::Tensor& branch, const at::Tensor& weight,
                        const at::Tensor& bias, double eps, at::Tensor& total, at::Tensor& normed,
                        at::Tensor& statistics) {
  const Launch launch(x);
  const Contiguous operands(launch, x);
  TORCH_CHECK_VALUE(x.dim() == 2, "x: expected 2 dimensions, got ", x.dim(), ".");
  const int64_t rows = x.size(0), columns = x.size(1);
  operands.check("x", x, {rows, columns});
  operands.check("branch", branch, {rows, columns});
  operands.check_wide("weight", weight, {columns});
  operands.check_wide("bias", bias, {columns});
  operands.check("total", total, {rows, columns});
  operands.check("normed", normed, {rows, columns});
  operands.check_wide("statistics", statistics, {rows, 2});
  add_layer_norm(operands.storage(), x.const_data_ptr(), branch.const_data_ptr(), weight.const_data_ptr(),
                 bias.const_data_ptr(), eps, rows, columns, total.mutable_data_ptr(), normed.mutable_data_ptr(),
                 statistics.mutable_data_ptr(), launch.stream());
}

void layer_norm_backward_(at::Tensor& d_total, const at::Tensor& d_normed, const at::Tensor& total,
                          const at::Tensor& statistics, const at::Tensor& weight) {
  const Launch launch(d_total);
  const Contiguous operands(launch, d_total);
  TORCH_CHECK_VALUE(d_total.dim() == 3, "d_total: expected 3 dimensions, got ", d_total.dim(), ".");
  const int64_t cotangents = d_total.size(0), rows = d_total.size(1), columns = d_total.size(2);
  operands.check("d_total", d_total, {cotangents, rows, columns});
  operands.check("d_normed", d_normed, {cotangents, rows, columns});
  operands.check("total", total, {rows, columns});
  operands.check_wide("statistics", statistics, {rows, 2});
  operands.check_wide("weight", weight, {columns});
  layer_norm_backward(operands.storage(), d_total.mutable_data_ptr(), d_normed.const_data_ptr(),
                      total.const_data_ptr(), statistics.const_data_ptr(), weight.const_data_ptr(), cotangents, rows,
                      columns, launch.stream());
}

void gelu_out(const at::Tensor& x, int64_t approximate, at::Tensor& out) {
  const Launch launch(x);
  const Contiguous operands(launch, x);
  operands.check("x", x, x.sizes());
  operands.check("out", out, x.sizes());
  gelu(operands.storage(), x.const_data_ptr(), x.numel(), approximation(approximate), out.mutable_data_ptr(),
       launch.stream());
}

void gelu_backward_(at::Tensor& gradient, const at::Tensor& x, int64_t approximate) {
  const Launch launch(x);
  const Contiguous operands(launch, x);
  TORCH_CHECK_VALUE(gradient.dim() > 0, "gradient: expected ", x.dim() + 1, " dimensions, got 0.");
  std::vector<int64_t> sizes(x.sizes().begin(), x.sizes().end());
  sizes.insert(sizes.begin(), gradient.size(0));
  operands.check("x", x, x.sizes());
  operands.check("gradient", gradient, sizes);
  gelu_backward(operands.storage(), gradient.mutable_data_ptr(), gradient.size(0), x.const_data_ptr(), x.numel(),
                approximation(approximate), launch.stream());
}

}  // namespace prograd::cuda
