// The launchers of edge_softmax_sum_out and its backward; see launch.h.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../common/types.h"

namespace prograd::cuda {

// The edges of each node n at one of their ends: order[starts[n]] ... order[starts[n + 1] - 1]. Those that end at no
// node are before the first and behind the last.
struct Segments {
  const int64_t* order;   // (edges,)
  const int64_t* starts;  // (nodes + 1,)
};

struct Graph {
  const int64_t *receivers, *senders;  // of each edge
  int64_t edges, nodes;
  int64_t graphs, samples, width;  // one graph for all samples, or one for each
  Segments rows;                   // over whose edges the softmax goes
  Segments ends;                   // receivers; in the backward senders
};

size_t edge_softmax_sum_workspace(Storage storage, const Graph& graph);
size_t edge_softmax_sum_backward_workspace(Storage storage, const Graph& graph);

// own, other, y (samples, nodes, width); logits (graphs, edges)
void edge_softmax_sum(Storage storage, const Graph& graph, const void* own, const void* other, const void* logits,
                      void* y, void* workspace, void* stream);

// gradient as y; d_own, d_other, d_logits as the inputs
void edge_softmax_sum_backward(Storage storage, const Graph& graph, const void* gradient, const void* own,
                               const void* other, const void* logits, void* d_own, void* d_other, void* d_logits,
                               void* workspace, void* stream);

}  // namespace prograd::cuda
