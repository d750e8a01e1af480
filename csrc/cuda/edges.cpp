// edge_softmax_sum_out and its backward on CUDA tensors.
#include "edges.h"

#include "../common/library.h"
#include "../operators/edges.h"
#include "launch.h"
#include "segments.h"

namespace prograd::cuda {
namespace {

// The graph of a call, and the memory that it points to.
class SortedGraph {
 public:
  SortedGraph(const Launch& launch, const at::Tensor& own, const at::Tensor& logits, const at::Tensor& rows,
              const at::Tensor& columns, bool transposed, bool backward)
      : rows_(launch.operand(rows, at::kLong, "rows")),
        columns_(launch.operand(columns, at::kLong, "columns")),
        by_row_(rows_, own.size(1)),
        by_column_(columns_, own.size(1)) {
    const int64_t *row = rows_.const_data_ptr<int64_t>(), *column = columns_.const_data_ptr<int64_t>();
    graph.receivers = transposed ? column : row;
    graph.senders = transposed ? row : column;
    graph.edges = rows.size(0);
    graph.nodes = own.size(1);
    graph.graphs = logits.dim() == 1 ? 1 : logits.size(0);
    graph.samples = own.size(0);
    graph.width = own.size(2);
    graph.rows = by_row_.segments();
    graph.ends = (transposed != backward ? by_column_ : by_row_).segments();
  }

  Graph graph;

 private:
  const at::Tensor rows_, columns_;
  const SortedEnds by_row_, by_column_;
};

void edge_softmax_sum_out(const at::Tensor& own, const at::Tensor& other, const at::Tensor& logits,
                          const at::Tensor& rows, const at::Tensor& columns, bool transposed, at::Tensor& y) {
  check_edge_softmax_sum(at::kCUDA, own, other, logits, rows, columns, y);
  const Launch launch(own);
  const at::ScalarType dtype = common_dtype(own, other, logits);
  const at::Tensor u = launch.operand(own, dtype, "own"), v = launch.operand(other, dtype, "other");
  const at::Tensor z = launch.operand(logits, dtype, "logits");
  const SortedGraph sorted(launch, own, logits, rows, columns, transposed, false);
  const Written written(y, dtype);
  const at::Tensor workspace = launch.workspace(edge_softmax_sum_workspace(storage_of(dtype), sorted.graph));
  edge_softmax_sum(storage_of(dtype), sorted.graph, u.const_data_ptr(), v.const_data_ptr(), z.const_data_ptr(),
                   written.data(), workspace.mutable_data_ptr(), launch.stream());
  written.write_back();
}

void edge_softmax_sum_backward_out(const at::Tensor& gradient, const at::Tensor& own, const at::Tensor& other,
                                   const at::Tensor& logits, const at::Tensor& rows, const at::Tensor& columns,
                                   bool transposed, at::Tensor& d_own, at::Tensor& d_other, at::Tensor& d_logits) {
  check_edge_softmax_sum_backward(at::kCUDA, gradient, own, other, logits, rows, columns, d_own, d_other, d_logits);
  const Launch launch(own);
  const at::ScalarType dtype = common_dtype(own, other, logits, gradient);
  const at::Tensor u = launch.operand(own, dtype, "own"), v = launch.operand(other, dtype, "other");
  const at::Tensor z = launch.operand(logits, dtype, "logits"), g = launch.operand(gradient, dtype, "gradient");
  const SortedGraph sorted(launch, own, logits, rows, columns, transposed, true);
  const Written written_own(d_own, dtype), written_other(d_other, dtype), written_logits(d_logits, dtype);
  const at::Tensor workspace = launch.workspace(edge_softmax_sum_backward_workspace(storage_of(dtype), sorted.graph));
  edge_softmax_sum_backward(storage_of(dtype), sorted.graph, g.const_data_ptr(), u.const_data_ptr(), v.const_data_ptr(),
                            z.const_data_ptr(), written_own.data(), written_other.data(), written_logits.data(),
                            workspace.mutable_data_ptr(), launch.stream());
  for (const Written* written : {&written_own, &written_other, &written_logits}) written->write_back();
}

const Registration registration(c10::DispatchKey::CUDA, [](torch::Library& library) {
  library.impl("edge_softmax_sum_out", TORCH_FN(edge_softmax_sum_out));
  library.impl("edge_softmax_sum_backward_out", TORCH_FN(edge_softmax_sum_backward_out));
});

}  // namespace
}  // namespace prograd::cuda
