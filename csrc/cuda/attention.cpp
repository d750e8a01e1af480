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

// The arguments of attention for a launch; offsets is kept alive by the caller. Leading rows are the prefix.
Attention attention_of(const at::Tensor& query, const at::Tensor& key_value, MaybeTensor prefix, int64_t leading,
                       const at::Tensor& offsets, int64_t heads, double scale, bool last) {
  const int64_t columns = query.size(2);
  TORCH_CHECK_VALUE(columns / heads <= kMaxHeadWidth, "heads: expected heads of at most ", kMaxHeadWidth,
                    " columns, got ", columns / heads, ": use another backend.");
  const at::Tensor shared = prefix ? *prefix : key_value.narrow(1, 0, leading);
  return {rows_of(query),
          rows_of(key_value.slice(1, leading)),
          rows_of(shared),
          offsets.const_data_ptr<int64_t>(),
          query.size(0),
          query.size(1),
          last ? 0 : leading,
          key_value.size(1) - leading,
          shared.size(1),
          offsets.numel() - 1,
          int(heads),
          int(columns / heads),
          scale,
          last};
}

void shared_prefix_attention_out(const at::Tensor& query, const at::Tensor& key_value, MaybeTensor prefix,
                                 int64_t leading, const at::Tensor& offsets_, int64_t heads, double scale, bool last,
                                 at::Tensor& out) {
  const Arguments arguments = check_attention(at::kCUDA, query, key_value, prefix, leading, offsets_, heads, last);
  arguments.rows("out", out, query.scalar_type(), query.sizes(), true);
  const Launch launch(query);
  const at::Tensor offsets = offsets_.contiguous();
  shared_prefix_attention(storage_of(query.scalar_type()),
                          attention_of(query, key_value, prefix, leading, offsets, heads, scale, last), rows_of(out),
                          launch.stream());
}

void shared_prefix_attention_backward_out(const at::Tensor& gradient, const at::Tensor& query,
                                          const at::Tensor& key_value, MaybeTensor prefix, int64_t leading,
                                          const at::Tensor& offsets_, int64_t heads, double scale, bool last,
                                          at::Tensor& d_query, at::Tensor& d_key_value,
                                          const std::optional<at::Tensor>& d_prefix) {
  const Arguments arguments = check_attention(at::kCUDA, query, key_value, prefix, leading, offsets_, heads, last);
  check_attention_backward(arguments, gradient, query, key_value, prefix, d_query, d_key_value, d_prefix);
  const Launch launch(query);
  const at::Tensor offsets = offsets_.contiguous();
  const Storage storage = storage_of(query.scalar_type());
  const Attention attention = attention_of(query, key_value, prefix, leading, offsets, heads, scale, last);
  const int64_t cotangents = gradient.size(0);
  const at::Tensor workspace =
      launch.workspace(shared_prefix_attention_backward_workspace(storage, attention, cotangents));
  shared_prefix_attention_backward(storage, attention, cotangents, rows_of(gradient), rows_of(d_query),
                                   rows_of(d_key_value.slice(2, leading)),
                                   rows_of(d_prefix ? *d_prefix : d_key_value.narrow(2, 0, leading)),
                                   workspace.mutable_data_ptr(), launch.stream());
}

const Registration registration(c10::DispatchKey::CUDA, [](torch::Library& library) {
  library.impl("shared_prefix_attention_out", TORCH_FN(shared_prefix_attention_out));
  library.impl("shared_prefix_attention_backward_out", TORCH_FN(shared_prefix_attention_backward_out));
});

}  // namespace
}  // namespace prograd::cuda
