// Sums along the edges of a graph. The edges are sorted by an end, so that each sum has one owner and needs no atomics:
//   edge_shares_kernel    a thread for each row: the softmax over its edges
//   edge_sum_kernel       a warp for each receiver: the weighted sum of what its edges bring
//   edge_backward_kernel  a warp for each sender: the gradients of its features; and of each weight <gradient, sent>
//   edge_logits_kernel    a warp for each row: through the softmax, and over the samples of one graph
// An edge to no node has a weight of NaN.
#include "edges.h"

#include "../common/math.h"
#include "reduce.cuh"
#include "storage.cuh"
#include "vector.cuh"

namespace prograd::cuda {

constexpr int kEdgeThreads = 128;
constexpr int kEdgeWarps = kEdgeThreads / kWarp;

template <typename T>
struct EdgeArguments {
  using A = Accumulation<T>;
  Graph graph;
  const T *own, *other, *logits, *gradient;
  T *y, *d_own, *d_other, *d_logits;
  A* shares;     // (graphs, edges)
  A* products;   // (samples, edges)
  bool aligned;  // all that is read or written by width
};

// Calls visit(edge) for the edges of a node.
template <typename Visit>
__device__ __forceinline__ void each_edge(const Segments& of, int64_t node, Visit visit) {
  const int64_t end = of.starts[node + 1];
  for (int64_t k = of.starts[node]; k < end; ++k) visit(of.order[k]);
}

// Calls it for the edges of no node.
template <typename Visit>
__device__ __forceinline__ void each_edge_of_none(const Graph& graph, const Segments& of, Visit visit) {
  const int64_t first = of.starts[0], behind = of.starts[graph.nodes];
  for (int64_t k = 0; k < graph.edges; ++k) {
    if (k == first) k = behind;
    if (k < graph.edges) visit(of.order[k]);
  }
}

// One block for a multiprocessor is enough: asking for no more keeps ptxas from spilling.
template <typename T>
__global__ void __launch_bounds__(kEdgeThreads, 1) edge_shares_kernel(PF_CONSTANT EdgeArguments<T> all) {
  using A = Accumulation<T>;
  const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x, rows = all.graph.nodes + 1;
  if (i >= all.graph.graphs * rows) return;
  const int64_t row = i % rows;
  const T* logits = all.logits + i / rows * all.graph.edges;
  A* shares = all.shares + i / rows * all.graph.edges;
  if (row == all.graph.nodes) {
    each_edge_of_none(all.graph, all.graph.rows, [&](int64_t e) { shares[e] = std::numeric_limits<A>::quiet_NaN(); });
    return;
  }
  A top = -std::numeric_limits<A>::infinity(), sum = 0;
  each_edge(all.graph.rows, row, [&](int64_t e) { top = larger(widen(logits[e]), top); });
  each_edge(all.graph.rows, row, [&](int64_t e) { sum += exp(widen(logits[e]) - top); });
  each_edge(all.graph.rows, row, [&](int64_t e) { shares[e] = exp(widen(logits[e]) - top) / sum; });
}

// The part of one node's features that a lane has.
template <typename T>
struct EdgeLane {
  static constexpr int N = kVector<T>;
  using A = Accumulation<T>;
  const Graph& graph;
  int64_t sample, node;
  const A* shares;

  __device__ __forceinline__ EdgeLane(const EdgeArguments<T>& all, int64_t sample, int64_t node)
      : graph(all.graph),
        sample(sample),
        node(node),
        shares(all.shares + (graph.graphs == 1 ? 0 : sample * graph.edges)) {}

  __device__ __forceinline__ int64_t at(int64_t other, int64_t feature) const {
    return (sample * graph.nodes + other) * graph.width + feature;
  }
  __device__ __forceinline__ int valid(int64_t feature) const {
    const int64_t left = graph.width - feature;
    return left < N ? left > 0 ? int(left) : 0 : N;
  }
  // NaN where there is no such node
  __device__ __forceinline__ void load_of(A (&values)[N], const T* from, int64_t other, int64_t feature,
                                          bool aligned) const {
    if (other >= 0 && other < graph.nodes) {
      load<N, T>(values, from + at(other, feature), valid(feature), aligned);
    } else {
#pragma unroll
      for (int i = 0; i < N; ++i) values[i] = std::numeric_limits<A>::quiet_NaN();
    }
  }
};

template <typename T>
__global__ void __launch_bounds__(kEdgeThreads) edge_sum_kernel(PF_CONSTANT EdgeArguments<T> all) {
  using A = Accumulation<T>;
  constexpr int N = kVector<T>;
  const int64_t team = int64_t(blockIdx.x) * kEdgeWarps + threadIdx.x / kWarp;
  if (team >= all.graph.samples * all.graph.nodes) return;
  const EdgeLane<T> lane(all, team / all.graph.nodes, team % all.graph.nodes);
  for (int64_t f = threadIdx.x % kWarp * N; f < all.graph.width; f += kWarp * N) {
    A sum[N] = {};
    each_edge(all.graph.ends, lane.node, [&](int64_t e) {
      const int64_t sender = all.graph.senders[e];
      A sent[N];
      lane.load_of(sent, sender == lane.node ? all.own : all.other, sender, f, all.aligned);
#pragma unroll
      for (int i = 0; i < N; ++i) sum[i] += lane.shares[e] * sent[i];
    });
    store<N, T>(all.y + lane.at(lane.node, f), sum, lane.valid(f), all.aligned);
  }
}

template <typename T>
__global__ void __launch_bounds__(kEdgeThreads) edge_backward_kernel(PF_CONSTANT EdgeArguments<T> all) {
  using A = Accumulation<T>;
  constexpr int N = kVector<T>;
  const int64_t team = int64_t(blockIdx.x) * kEdgeWarps + threadIdx.x / kWarp;
  const int64_t nodes = all.graph.nodes + 1;  // with the one behind the last
  if (team >= all.graph.samples * nodes) return;
  const EdgeLane<T> lane(all, team / nodes, team % nodes);
  A* products = all.products + lane.sample * all.graph.edges;
  if (lane.node == all.graph.nodes) {
    each_edge_of_none(all.graph, all.graph.ends, [&](int64_t e) { products[e] = std::numeric_limits<A>::quiet_NaN(); });
    return;
  }
  if (all.graph.width == 0) each_edge(all.graph.ends, lane.node, [&](int64_t e) { products[e] = A(0); });
  // the same number of turns for each lane: they add up together
  for (int64_t start = 0; start < all.graph.width; start += kWarp * N) {
    const int64_t f = start + threadIdx.x % kWarp * N;
    A of_own[N] = {}, of_other[N] = {}, own[N], other[N];
    lane.load_of(own, all.own, lane.node, f, all.aligned);
    lane.load_of(other, all.other, lane.node, f, all.aligned);
    each_edge(all.graph.ends, lane.node, [&](int64_t e) {
      const int64_t receiver = all.graph.receivers[e];
      const bool loop = receiver == lane.node;
      A gradient[N];
      lane.load_of(gradient, all.gradient, receiver, f, all.aligned);
      A product = 0;
#pragma unroll
      for (int i = 0; i < N; ++i) {
        product += gradient[i] * (loop ? own[i] : other[i]);
        const A weighted = lane.shares[e] * gradient[i];
        of_own[i] += loop ? weighted : A(0);
        of_other[i] += loop ? A(0) : weighted;
      }
      product = warp_sum(product);
      if (threadIdx.x % kWarp == 0) products[e] = start == 0 ? product : products[e] + product;
    });
    store<N, T>(all.d_own + lane.at(lane.node, f), of_own, lane.valid(f), all.aligned);
    store<N, T>(all.d_other + lane.at(lane.node, f), of_other, lane.valid(f), all.aligned);
  }
}

template <typename T>
__global__ void __launch_bounds__(kEdgeThreads, 1) edge_logits_kernel(PF_CONSTANT EdgeArguments<T> all) {
  using A = Accumulation<T>;
  const int64_t team = int64_t(blockIdx.x) * kEdgeWarps + threadIdx.x / kWarp, rows = all.graph.nodes + 1;
  if (team >= all.graph.graphs * rows) return;
  const int64_t edges = all.graph.edges, graph = team / rows, row = team % rows, lane = threadIdx.x % kWarp;
  T* d_logits = all.d_logits + graph * edges;
  if (row == all.graph.nodes) {
    each_edge_of_none(all.graph, all.graph.rows,
                      [&](int64_t e) { narrow(d_logits[e], std::numeric_limits<A>::quiet_NaN()); });
    return;
  }
  const int64_t samples = all.graph.graphs == 1 ? all.graph.samples : 1;  // of this graph
  const A *products = all.products + graph * edges, *shares = all.shares + graph * edges;
  const auto product_of = [&](int64_t e) {
    A sum = 0;
    for (int64_t sample = lane; sample < samples; sample += kWarp) sum += products[sample * edges + e];
    return warp_sum(sum);
  };
  A of_row = 0;
  each_edge(all.graph.rows, row, [&](int64_t e) { of_row += shares[e] * product_of(e); });
  each_edge(all.graph.rows, row, [&](int64_t e) {
    const A slope = shares[e] * (product_of(e) - of_row);
    if (lane == 0) narrow(d_logits[e], slope);
  });
}

// ---- the operators

inline int64_t edge_blocks(int64_t teams, int64_t of_block) { return (teams + of_block - 1) / of_block; }

template <typename T>
void launch_shares(const EdgeArguments<T>& arguments, void* stream) {
  const int64_t rows = arguments.graph.graphs * (arguments.graph.nodes + 1);
  if (rows > 0) {
    launch(edge_shares_kernel<T>, edge_blocks(rows, kEdgeThreads), kEdgeThreads, 0, false, stream, arguments);
  }
}

template <typename T>
EdgeArguments<T> edge_arguments(const Graph& graph, const void* own, const void* other, const void* logits,
                                void* workspace) {
  EdgeArguments<T> arguments{};
  arguments.graph = graph;
  arguments.own = static_cast<const T*>(own);
  arguments.other = static_cast<const T*>(other);
  arguments.logits = static_cast<const T*>(logits);
  arguments.shares = static_cast<Accumulation<T>*>(workspace);
  arguments.products = arguments.shares + graph.graphs * graph.edges;
  arguments.aligned = graph.width % kVector<T> == 0 && is_aligned(own) && is_aligned(other);
  return arguments;
}

size_t edge_softmax_sum_workspace(Storage storage, const Graph& graph) {
  return with_accumulation(
      storage, [&](auto type) { return graph.graphs * graph.edges * sizeof(typename decltype(type)::type); });
}

size_t edge_softmax_sum_backward_workspace(Storage storage, const Graph& graph) {
  return with_accumulation(storage, [&](auto type) {
    return (graph.graphs + graph.samples) * graph.edges * sizeof(typename decltype(type)::type);
  });
}

void edge_softmax_sum(Storage storage, const Graph& graph, const void* own, const void* other, const void* logits,
                      void* y, void* workspace, void* stream) {
  const int64_t teams = graph.samples * graph.nodes;
  if (teams == 0) return;
  with_storage(storage, [&](auto type) {
    using T = typename decltype(type)::type;
    EdgeArguments<T> arguments = edge_arguments<T>(graph, own, other, logits, workspace);
    arguments.y = static_cast<T*>(y);
    arguments.aligned = arguments.aligned && is_aligned(y);
    launch_shares(arguments, stream);
    launch(edge_sum_kernel<T>, edge_blocks(teams, kEdgeWarps), kEdgeThreads, 0, false, stream, arguments);
  });
}

void edge_softmax_sum_backward(Storage storage, const Graph& graph, const void* gradient, const void* own,
                               const void* other, const void* logits, void* d_own, void* d_other, void* d_logits,
                               void* workspace, void* stream) {
  const int64_t teams = graph.samples * (graph.nodes + 1), rows = graph.graphs * (graph.nodes + 1);
  with_storage(storage, [&](auto type) {
    using T = typename decltype(type)::type;
    EdgeArguments<T> arguments = edge_arguments<T>(graph, own, other, logits, workspace);
    arguments.gradient = static_cast<const T*>(gradient);
    arguments.d_own = static_cast<T*>(d_own);
    arguments.d_other = static_cast<T*>(d_other);
    arguments.d_logits = static_cast<T*>(d_logits);
    arguments.aligned = arguments.aligned && is_aligned(gradient) && is_aligned(d_own) && is_aligned(d_other);
    launch_shares(arguments, stream);
    if (teams > 0) {
      launch(edge_backward_kernel<T>, edge_blocks(teams, kEdgeWarps), kEdgeThreads, 0, false, stream, arguments);
    }
    if (rows > 0) {
      launch(edge_logits_kernel<T>, edge_blocks(rows, kEdgeWarps), kEdgeThreads, 0, false, stream, arguments);
    }
  });
}

}  // namespace prograd::cuda
