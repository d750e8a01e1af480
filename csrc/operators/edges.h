// What edge_softmax_sum_out and its backward ask of their arguments.
#pragma once

#include <utility>

#include "../common/arguments.h"

namespace prograd {

// The rows and columns of a graph's edges. Those on a GPU are not looked at, since that would wait for it.
inline void check_ends(const Arguments& arguments, const at::Tensor& rows, const at::Tensor& columns, int64_t nodes) {
  Arguments::defined("rows", rows);
  TORCH_CHECK_VALUE(rows.dim() == 1, "rows: expected shape (edges,), got ", rows.sizes(), ".");
  arguments.integers("rows", rows, rows.sizes());
  arguments.integers("columns", columns, rows.sizes());
  if (!rows.is_cpu()) return;
  for (const auto& [name, ends] : {std::pair("rows", rows.contiguous()), std::pair("columns", columns.contiguous())}) {
    const int64_t* end = ends.const_data_ptr<int64_t>();
    for (int64_t e = 0; e < ends.size(0); ++e) {
      TORCH_CHECK_VALUE(end[e] >= 0 && end[e] < nodes, name, "[", e, "]: expected a node below ", nodes, ", got ",
                        end[e], ".");
    }
  }
}

inline Arguments check_edges(c10::DeviceType type, const at::Tensor& own, const at::Tensor& other,
                             const at::Tensor& logits, const at::Tensor& rows, const at::Tensor& columns) {
  const Arguments arguments("own", own, type);
  arguments.dimensions("own", own, 3);
  arguments.floating("other", other, own.sizes());
  check_ends(arguments, rows, columns, own.size(1));
  Arguments::defined("logits", logits);
  const int64_t edges = rows.size(0), batch = own.size(0);
  if (logits.dim() == 1) {
    arguments.floating("logits", logits, {edges});
  } else {
    arguments.floating("logits", logits, {batch, edges});
  }
  return arguments;
}

inline void check_edge_softmax_sum(c10::DeviceType type, const at::Tensor& own, const at::Tensor& other,
                                   const at::Tensor& logits, const at::Tensor& rows, const at::Tensor& columns,
                                   const at::Tensor& y) {
  check_edges(type, own, other, logits, rows, columns).result("y", y, own.sizes());
}

inline void check_edge_softmax_sum_backward(c10::DeviceType type, const at::Tensor& gradient, const at::Tensor& own,
                                            const at::Tensor& other, const at::Tensor& logits, const at::Tensor& rows,
                                            const at::Tensor& columns, const at::Tensor& d_own,
                                            const at::Tensor& d_other, const at::Tensor& d_logits) {
  const Arguments arguments = check_edges(type, own, other, logits, rows, columns);
  arguments.floating("gradient", gradient, own.sizes());
  arguments.result("d_own", d_own, own.sizes());
  arguments.result("d_other", d_other, own.sizes());
  arguments.result("d_logits", d_logits, logits.sizes());
}

}  // namespace prograd
