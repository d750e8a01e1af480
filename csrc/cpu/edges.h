// The kernels of edge_softmax_sum_out and its backward: one sample, all in the accumulation dtype.
#pragma once

#include "dispatch.h"
#include "sorted_edges.h"

namespace prograd::cpu {

struct Edges {
  const std::int64_t *rows, *columns;
  std::int64_t edges, nodes, width;
  bool transposed;
  Ends by_receiver, by_sender;

  const std::int64_t* receivers() const { return transposed ? columns : rows; }
  const std::int64_t* senders() const { return transposed ? rows : columns; }
};

struct EdgeKernels {
  // Softmax of the logits (edges,) over the edges of each row; scratch (2 nodes,).
  void (*shares)(const Edges&, const void* logits, void* shares, void* scratch);
  // y (nodes, width) = weighted sums of own and other (nodes, width); scratch (width,), in which a row is
  // made that goes past the caches.
  void (*sum)(const Edges&, const void* own, const void* other, const void* shares, void* y, void* scratch,
              bool past_caches);
  // d_own, d_other (nodes, width), d_logits (edges,) of a gradient (nodes, width); scratch (nodes + 2 width,),
  // likewise.
  void (*backward)(const Edges&, const void* gradient, const void* own, const void* other, const void* shares,
                   void* d_own, void* d_other, void* d_logits, void* scratch, bool past_caches);
};

}  // namespace prograd::cpu
