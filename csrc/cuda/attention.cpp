// shared_prefix_attention_out and shared_prefix_attention_backward_out on CUDA tensors.
#include "attention.h"

#include "../common/library.h"
#include "../operators/attention.h"
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

// The leading rows as a segment of their own, without a prefix.
at::Tensor leading_offsets(const at::Tensor& offsets, int64_t leading) {
  return at::arange(2, offsets.options()) * leading;
}

void shared_prefix_attention_out(const at::Tensor& query, const at::Tensor& key_value, MaybeTensor prefix,
                                 int64_t leading, const at::Tensor& offsets_, int64_t heads, double scale, bool last,
                                 at::Tensor& out) {
  const Arguments arguments = check_attention(at::kCUDA, query, key_value, prefix, leading, offsets_, heads, last);
  arguments.rows("out", out, query.scalar_type(), query.sizes(), true);
  const Launch launch(query);
  const Storage storage = storage_of(query.scalar_type());
  const int64_t own = last ? 0 : leading;  // leading queries
  const auto attend = [&](const at::Tensor& q, const at::Tensor& rows, const at::Tensor& shared,
                          const at::Tensor& offsets, const at::Tensor& to) {
    shared_prefix_attention(storage, attention_of(q, rows, shared, offsets, heads, scale, last), rows_of(to),
                            launch.stream());
  };
  const at::Tensor offsets = offsets_.contiguous(), shared = prefix ? *prefix : key_value.narrow(1, 0, leading);
  if (own > 0) {
    attend(query.narrow(1, 0, own), shared, shared.narrow(1, 0, 0), leading_offsets(offsets, own),
           out.narrow(1, 0, own));
  }
  if (offsets.numel() > 1) {
    attend(query.slice(1, own), key_value.slice(1, leading), shared, offsets, out.slice(1, own));
  }
}

void shared_prefix_attention_backward_out(const at::Tensor& gradient, const at::Tensor& query,
                                          const at::Tensor& key_value, MaybeTensor prefix, int64_t leading,
                                          const at::Tensor& offsets_, int64_t heads, double scale, bool last,
                                          at::Tensor& d_query, at::Tensor& d_key_value,
                                          const std::optional<at::Tensor>& d_prefix) {
  const Arguments arguments = check_attention(at::kCUDA, query, key_value, prefix, leading, offsets_, heads, last);
  check_attention_backward(arguments, gradient, query, key_value, prefix, d_query, d_key_value, d_prefix);
  const Launch launch(query);
  const Storage storage = storage_of(query.scalar_type());
  const int64_t own = last ? 0 : leading;  // leading queries
  const auto attend = [&](const at::Tensor& d_out, const at::Tensor& q, const at::Tensor& rows,
                          const at::Tensor& shared, const at::Tensor& offsets, const at::Tensor& d_q,
                          const at::Tensor& d_rows, const at::Tensor& d_shared) {
    const Attention attention = attention_of(q, rows, shared, offsets, heads, scale, last);
    const at::Tensor workspace = launch.workspace(shared_prefix_attention_backward_workspace(storage, attention));
    shared_prefix_attention_backward(storage, attention, gradient.size(0), rows_of(d_out), rows_of(d_q),
                                     rows_of(d_rows), rows_of(d_shared), workspace.mutable_data_ptr(), launch.stream());
  };
  const at::Tensor offsets = offsets_.contiguous(), shared = prefix ? *prefix : key_value.narrow(1, 0, leading);
  const at::Tensor d_leading = d_key_value.narrow(2, 0, leading);
  const at::Tensor d_shared = d_prefix  ? *d_prefix
                              : own > 0 ? at::zeros_like(d_leading, at::MemoryFormat::Contiguous)
                                        : d_leading;
  if (offsets.numel() > 1) {
    attend(gradient.slice(2, own), query.slice(1, own), key_value.slice(1, leading), shared, offsets,
           d_query.slice(2, own), d_key_value.slice(2, leading), d_shared);
  } else if (own == 0) {
    d_shared.zero_();
  }
  if (own > 0) {
    attend(gradient.narrow(2, 0, own), query.narrow(1, 0, own), shared, shared.narrow(1, 0, 0),
           leading_offsets(offsets, own), d_query.narrow(2, 0, own), d_leading, d_shared.narrow(2, 0, 0));
    d_leading.add_(d_shared);
  }
}

const Registration registration(c10::DispatchKey::CUDA, [](torch::Library& library) {
  library.impl("shared_prefix_attention_out", TORCH_FN(shared_prefix_attention_out));
  library.impl("shared_prefix_attention_backward_out", TORCH_FN(shared_prefix_attention_backward_out));
});

}  // namespace
}  // namespace prograd::cuda
