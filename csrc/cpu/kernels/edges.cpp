// Sums along the edges of a graph: a row of features for each edge, and nothing of nodes by nodes.
#include "../edges.h"

#include <algorithm>
#include <limits>

#include "stream.h"
#include "table.h"

namespace prograd::cpu {
namespace {

template <typename T>
void edge_shares(const Edges& graph, const void* logits_, void* shares_, void* scratch) {
  const T* logits = static_cast<const T*>(logits_);
  T *shares = static_cast<T*>(shares_), *top = static_cast<T*>(scratch), *sum = top + graph.nodes;
  std::fill(top, top + graph.nodes, -std::numeric_limits<T>::infinity());
  std::fill(sum, sum + graph.nodes, T(0));
  for (std::int64_t e = 0; e < graph.edges; ++e) {
    T& most = top[graph.rows[e]];
    most = logits[e] > most || logits[e] != logits[e] ? logits[e] : most;
  }
  for (std::int64_t e = 0; e < graph.edges; ++e) {
    shares[e] = exp(logits[e] - top[graph.rows[e]]);
    sum[graph.rows[e]] += shares[e];
  }
  for (std::int64_t e = 0; e < graph.edges; ++e) shares[e] /= sum[graph.rows[e]];
}

template <typename T>
void edge_sum(const Edges& graph, const void* own, const void* other, const void* shares, void* y_, void* scratch,
              bool past_caches) {
  T* y = static_cast<T*>(past_caches ? scratch : y_);
  std::fill(y, y + graph.nodes * graph.width, T(0));
  for (std::int64_t e = 0; e < graph.edges; ++e) {
    const std::int64_t row = graph.rows[e], column = graph.columns[e];
    const T* __restrict from =
        static_cast<const T*>(row == column ? own : other) + (graph.transposed ? row : column) * graph.width;
    T* __restrict to = y + (graph.transposed ? column : row) * graph.width;
    const T share = static_cast<const T*>(shares)[e];
#pragma omp simd
    for (std::int64_t k = 0; k < graph.width; ++k) to[k] += share * from[k];
  }
  if (past_caches) stream_copy(y_, y, std::size_t(graph.nodes * graph.width) * sizeof(T));
}

template <typename T>
void edge_backward(const Edges& graph, const void* gradient, const void* own, const void* other, const void* shares_,
                   void* d_own_, void* d_other_, void* d_logits_, void* scratch, bool past_caches) {
  const std::int64_t size = graph.nodes * graph.width;
  const T* shares = static_cast<const T*>(shares_);
  T *d_logits = static_cast<T*>(d_logits_), *of_row = static_cast<T*>(scratch);
  T* d_own = past_caches ? of_row + graph.nodes : static_cast<T*>(d_own_);
  T* d_other = past_caches ? d_own + size : static_cast<T*>(d_other_);
  for (T* result : {d_own, d_other}) std::fill(result, result + size, T(0));
  std::fill(of_row, of_row + graph.nodes, T(0));
  for (std::int64_t e = 0; e < graph.edges; ++e) {
    const std::int64_t row = graph.rows[e], column = graph.columns[e];
    const std::int64_t sender = graph.transposed ? row : column, receiver = graph.transposed ? column : row;
    const T* __restrict g = static_cast<const T*>(gradient) + receiver * graph.width;
    const T* __restrict sent = static_cast<const T*>(row == column ? own : other) + sender * graph.width;
    T* __restrict to = (row == column ? d_own : d_other) + sender * graph.width;
    T product = 0;
#pragma omp simd reduction(+ : product)
    for (std::int64_t k = 0; k < graph.width; ++k) {
      product += g[k] * sent[k];
      to[k] += shares[e] * g[k];
    }
    d_logits[e] = product;
    of_row[row] += shares[e] * product;
  }
  for (std::int64_t e = 0; e < graph.edges; ++e) d_logits[e] = shares[e] * (d_logits[e] - of_row[graph.rows[e]]);
  if (past_caches) {
    stream_copy(d_own_, d_own, std::size_t(size) * sizeof(T));
    stream_copy(d_other_, d_other, std::size_t(size) * sizeof(T));
  }
}

template <typename S>
struct EdgeSums {
  using T = Accumulation<S>;
  static constexpr EdgeKernels kernels{edge_shares<T>, edge_sum<T>, edge_backward<T>};
};

}  // namespace

template <>
const ByStorage<EdgeKernels> Compiled<EdgeKernels>::PF_ISA = by_storage<EdgeSums>();

}  // namespace prograd::cpu
