// What shared_prefix_attention_out and shared_prefix_attention_backward_out ask of their arguments.
#pragma once

#include "../common/arguments.h"

namespace prograd {

inline Arguments check_attention(c10::DeviceType type, const at::Tensor& query, const at::Tensor& key_value,
                                 MaybeTensor prefix, int64_t leading, const at::Tensor& offsets, int64_t heads,
                                 bool last) {
  const Arguments arguments("query", query, type);
  arguments.dimensions("query", query, 3);
  arguments.dimensions("key_value", key_value, 3);
  const at::ScalarType dtype = query.scalar_type();
  const int64_t groups = query.size(0), rows = key_value.size(1), width = query.size(2);
  if (prefix) {
    arguments.dimensions("prefix", *prefix, 3);
    arguments.rows("prefix", *prefix, dtype, {groups, prefix->size(1), 2 * width});
  }
  const int64_t most = prefix ? 0 : rows;
  TORCH_CHECK_VALUE(0 <= leading && leading <= most, "leading: expected 0 ... ", most, " rows, got ", leading, ".");
  Arguments::defined("offsets", offsets);
  TORCH_CHECK_VALUE(offsets.dim() == 1 && offsets.numel() > 0, "offsets: expected shape (segments + 1,), got ",
                    offsets.sizes(), ".");
  arguments.integers("offsets", offsets, offsets.sizes());
  TORCH_CHECK_VALUE(heads > 0 && width % heads == 0, "heads: expected a divisor of ", width, ", got ", heads, ".");
  arguments.rows("query", query, dtype, {groups, last ? offsets.numel() - 1 : rows, width});
  arguments.rows("key_value", key_value, dtype, {groups, rows, 2 * width});
  return arguments;
}

inline void check_attention_backward(const Arguments& arguments, const at::Tensor& gradient, const at::Tensor& query,
                                     const at::Tensor& key_value, MaybeTensor prefix, const at::Tensor& d_query,
                                     const at::Tensor& d_key_value, MaybeTensor d_prefix) {
  arguments.dimensions("gradient", gradient, 4);
  TORCH_CHECK_VALUE(prefix.has_value() == d_prefix.has_value(), "d_prefix: expected ", prefix ? "a tensor" : "None",
                    " as for prefix, got ", d_prefix ? "a tensor" : "None", ".");
  const auto check_each = [&](const char* name, const at::Tensor& tensor, const at::Tensor& like) {
    arguments.rows(name, tensor, query.scalar_type(), {gradient.size(0), like.size(0), like.size(1), like.size(2)},
                   !tensor.is_same(gradient));
  };
  check_each("gradient", gradient, query);
  check_each("d_query", d_query, query);
  check_each("d_key_value", d_key_value, key_value);
  if (prefix) check_each("d_prefix", *d_prefix, *prefix);
}

}  // namespace prograd
