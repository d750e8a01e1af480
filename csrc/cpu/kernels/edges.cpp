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

// Fetches a node's row of the next sample, of those that the second-level cache has room for: edges lead to and fro in
// a sample, which the machine's own fetching does not foresee.
template <typename T>
PF_HOST_DEVICE void fetch_next(const Edges& graph, const T* all, std::int64_t node) {
  constexpr std::int64_t most = 1 << 17, line = 64 / std::int64_t(sizeof(T));  // most: bytes
  if (graph.nodes * graph.width * std::int64_t(sizeof(T)) > most) return;
  const T* row = all + (graph.nodes + node) * graph.width;
  for (std::int64_t c = 0; c < graph.width; c += line) __builtin_prefetch(row + c, 0, 2);
}

// By receiver: a node's row is complete before the next one is begun.
template <typename T>
void edge_sum(const Edges& graph, const void* own_, const void* other_, const void* shares, void* y, void* scratch,
              bool past_caches) {
  const T *own = static_cast<const T*>(own_), *other = static_cast<const T*>(other_);
  for (std::int64_t node = 0; node < graph.nodes; ++node) {
    T* result = static_cast<T*>(y) + node * graph.width;
    T* __restrict to = past_caches ? static_cast<T*>(scratch) : result;
    for (const T* of : {own, other}) fetch_next(graph, of, node);
    std::fill(to, to + graph.width, T(0));
    graph.by_receiver.each(node, [&](std::int64_t e) {
      const std::int64_t sender = graph.senders()[e];
      const T* __restrict from = (sender == node ? own : other) + sender * graph.width;
      const T share = static_cast<const T*>(shares)[e];
#pragma omp simd
      for (std::int64_t k = 0; k < graph.width; ++k) to[k] = fused(share, from[k], to[k]);
    });
    if (past_caches) stream_copy(result, to, std::size_t(graph.width) * sizeof(T));
  }
}

// By sender, likewise.
template <typename T>
void edge_backward(const Edges& graph, const void* gradient, const void* own_, const void* other_, const void* shares_,
                   void* d_own_, void* d_other_, void* d_logits_, void* scratch, bool past_caches) {
  const T *own = static_cast<const T*>(own_), *other = static_cast<const T*>(other_);
  const T *shares = static_cast<const T*>(shares_), *all = static_cast<const T*>(gradient);
  T *d_logits = static_cast<T*>(d_logits_), *of_row = static_cast<T*>(scratch);
  std::fill(of_row, of_row + graph.nodes, T(0));
  for (std::int64_t node = 0; node < graph.nodes; ++node) {
    const std::int64_t at = node * graph.width;
    T *result = static_cast<T*>(d_own_) + at, *other_result = static_cast<T*>(d_other_) + at;
    T *made = of_row + graph.nodes, *d_own = past_caches ? made : result;
    T* d_other = past_caches ? made + graph.width : other_result;
    for (const T* of : {all, own, other}) fetch_next(graph, of, node);
    for (T* to : {d_own, d_other}) std::fill(to, to + graph.width, T(0));
    graph.by_sender.each(node, [&](std::int64_t e) {
      const std::int64_t receiver = graph.receivers()[e];
      const T *g = all + receiver * graph.width, *sent = (receiver == node ? own : other) + at;
      T* to = receiver == node ? d_own : d_other;
      Vector<T> product{};
      each_vector<T>(graph.width, [&](std::int64_t c, std::int64_t width) {
        const Vector<T> received = loaded(g + c, width, T(0));
        product = multiply_add(received, loaded(sent + c, width, T(0)), product);
        stored(to + c, multiply_add(broadcast(shares[e]), received, loaded(to + c, width, T(0))), width);
      });
      d_logits[e] = sum_of<T>(product);
    });
    if (past_caches) {
      stream_copy(result, d_own, std::size_t(graph.width) * sizeof(T));
      stream_copy(other_result, d_other, std::size_t(graph.width) * sizeof(T));
    }
  }
  for (std::int64_t e = 0; e < graph.edges; ++e) of_row[graph.rows[e]] += shares[e] * d_logits[e];
  for (std::int64_t e = 0; e < graph.edges; ++e) d_logits[e] = shares[e] * (d_logits[e] - of_row[graph.rows[e]]);
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
