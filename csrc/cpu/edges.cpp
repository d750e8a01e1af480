// edge_softmax_sum_out and its backward on CPU tensors.
#include "edges.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <tuple>
#include <vector>

#include "../common/kept_memory.h"
#include "../common/large.h"
#include "../common/library.h"
#include "../common/operand.h"
#include "../operators/edges.h"

namespace prograd::cpu {
namespace {

constexpr int64_t grain_size = 16384;  // products for which a second thread pays

// The inputs of a call in the accumulation dtype, and the weights of the edges.
class Graph {
 public:
  Graph(const at::Tensor& own, const at::Tensor& other, const at::Tensor& logits, const at::Tensor& rows,
        const at::Tensor& columns, bool transposed)
      : dtype(accumulation_dtype(common_dtype(own, other, logits))),
        own_(contiguous(own, dtype)),
        other_(contiguous(other, dtype)),
        rows_(rows.contiguous()),
        columns_(columns.contiguous()),
        by_row_(rows_.const_data_ptr<int64_t>(), rows.size(0), own.size(1)),
        by_column_(columns_.const_data_ptr<int64_t>(), rows.size(0), own.size(1)),
        kernels(kernels_for<EdgeKernels>(storage_of(dtype))),
        edges{rows_.const_data_ptr<int64_t>(),
              columns_.const_data_ptr<int64_t>(),
              rows.size(0),
              own.size(1),
              own.size(2),
              transposed,
              (transposed ? by_column_ : by_row_).ends(),
              (transposed ? by_row_ : by_column_).ends()},
        size(int64_t(c10::elementSize(dtype))) {
    const at::Tensor l = contiguous(logits, dtype);
    const int64_t graphs = logits.dim() == 1 ? 1 : logits.size(0);
    shares_ = at::empty({graphs, edges.edges}, l.options());
    std::vector<char> scratch(2 * edges.nodes * size);
    for (int64_t i = 0; i < graphs; ++i) {
      kernels.shares(edges, part(l, i * edges.edges), part(shares_, i * edges.edges), scratch.data());
    }
  }

  // body(i, scratch of so many elements) for every sample, whatever thread it runs on.
  template <typename Body>
  void each_sample(int64_t scratch_size, const Body& body) const {
    const int64_t work = std::max<int64_t>(1, edges.edges * edges.width);
    at::parallel_for(0, own_.size(0), std::max<int64_t>(1, grain_size / work), [&](int64_t begin, int64_t end) {
      std::vector<char> scratch(scratch_size * size);
      for (int64_t i = begin; i < end; ++i) body(i, scratch.data());
    });
  }
  bool past_caches() const { return own_.numel() * size >= stream_bytes; }

  const char* own(int64_t i) const { return part(own_, i * edges.nodes * edges.width); }
  const char* other(int64_t i) const { return part(other_, i * edges.nodes * edges.width); }
  const char* shares(int64_t i) const { return part(shares_, shares_.size(0) == 1 ? 0 : i * edges.edges); }
  char* part(const at::Tensor& tensor, int64_t element) const {
    return static_cast<char*>(const_cast<void*>(data_of(tensor))) + element * size;
  }

  const at::ScalarType dtype;

 private:
  const at::Tensor own_, other_, rows_, columns_;
  const SortedEdges by_row_, by_column_;
  at::Tensor shares_;

 public:
  const EdgeKernels& kernels;
  const Edges edges;
  const int64_t size;  // bytes of an element
};

void edge_softmax_sum_out(const at::Tensor& own, const at::Tensor& other, const at::Tensor& logits,
                          const at::Tensor& rows, const at::Tensor& columns, bool transposed, at::Tensor& y) {
  check_edge_softmax_sum(at::kCPU, own, other, logits, rows, columns, y);
  const Graph graph(own, other, logits, rows, columns, transposed);
  const Written written(y, graph.dtype);
  const int64_t of_sample = graph.edges.nodes * graph.edges.width;
  prefer_huge_pages(written.data(), written.tensor().nbytes());
  graph.each_sample(graph.edges.width, [&](int64_t i, char* scratch) {
    graph.kernels.sum(graph.edges, graph.own(i), graph.other(i), graph.shares(i),
                      written.data() + i * of_sample * graph.size, scratch, graph.past_caches());
  });
  written.write_back();
}

void edge_softmax_sum_backward_out(const at::Tensor& gradient, const at::Tensor& own, const at::Tensor& other,
                                   const at::Tensor& logits, const at::Tensor& rows, const at::Tensor& columns,
                                   bool transposed, at::Tensor& d_own, at::Tensor& d_other, at::Tensor& d_logits) {
  check_edge_softmax_sum_backward(at::kCPU, gradient, own, other, logits, rows, columns, d_own, d_other, d_logits);
  const Graph graph(own, other, logits, rows, columns, transposed);
  const at::Tensor g = contiguous(gradient, graph.dtype);
  const Written written_own(d_own, graph.dtype), written_other(d_other, graph.dtype);
  const at::Tensor of_samples = at::empty({own.size(0), graph.edges.edges}, g.options());
  const int64_t of_sample = graph.edges.nodes * graph.edges.width;
  for (const Written* written : {&written_own, &written_other}) {
    prefer_huge_pages(written->data(), written->tensor().nbytes());
  }
  graph.each_sample(graph.edges.nodes + 2 * graph.edges.width, [&](int64_t i, char* scratch) {
    graph.kernels.backward(graph.edges, graph.part(g, i * of_sample), graph.own(i), graph.other(i), graph.shares(i),
                           written_own.data() + i * of_sample * graph.size,
                           written_other.data() + i * of_sample * graph.size,
                           graph.part(of_samples, i * graph.edges.edges), scratch, graph.past_caches());
  });
  written_own.write_back();
  written_other.write_back();
  d_logits.copy_(logits.dim() == 1 ? of_samples.sum(0) : of_samples);
}

at::Tensor edge_softmax_sum(const at::Tensor& own, const at::Tensor& other, const at::Tensor& logits,
                            const at::Tensor& rows, const at::Tensor& columns, bool transposed) {
  check_edges(at::kCPU, own, other, logits, rows, columns);  // before anything is read of them
  at::Tensor y = empty_in_kept_memory(own.sizes(), own.options());
  edge_softmax_sum_out(own, other, logits, rows, columns, transposed, y);
  return y;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> edge_softmax_sum_backward(const at::Tensor& gradient,
                                                                         const at::Tensor& own, const at::Tensor& other,
                                                                         const at::Tensor& logits,
                                                                         const at::Tensor& rows,
                                                                         const at::Tensor& columns, bool transposed) {
  check_edges(at::kCPU, own, other, logits, rows, columns);
  at::Tensor d_own = empty_in_kept_memory(own.sizes(), own.options());
  at::Tensor d_other = empty_in_kept_memory(other.sizes(), other.options());
  at::Tensor d_logits = at::empty(logits.sizes(), logits.options());
  edge_softmax_sum_backward_out(gradient, own, other, logits, rows, columns, transposed, d_own, d_other, d_logits);
  return {d_own, d_other, d_logits};
}

const Registration registration(c10::DispatchKey::CPU, [](torch::Library& library) {
  library.impl("edge_softmax_sum", TORCH_FN(edge_softmax_sum));
  library.impl("edge_softmax_sum_out", TORCH_FN(edge_softmax_sum_out));
  library.impl("edge_softmax_sum_backward", TORCH_FN(edge_softmax_sum_backward));
  library.impl("edge_softmax_sum_backward_out", TORCH_FN(edge_softmax_sum_backward_out));
});

}  // namespace
}  // namespace prograd::cpu
