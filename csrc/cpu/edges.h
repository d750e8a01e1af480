// The kernels of edge_softmax_sum_out and its backward: one sample, all in the accumulation dtype.
#pragma once

#include "dispatch.h"

namespace prograd::cpu {

struct Edges {
  const std::int64_t *rows, *columns;
  std::int64_t edges, nodes, width;
  bool transposed;
};

struct EdgeKernels {
  // Softmax of the logits (edges,) over the edges of each row; scratch (2 nodes,).
  void (*shares)(const Edges&, const void* logits, void* shares, void* scratch);
  // y (nodes, width) = weighted sums of own and other (nodes, width). Past the caches it is added up in scratch (nodes,
  // width) and written once.
  void (*sum)(const Edges&, const void* own, const void* other, const void* shares, void* y, void* scratch,
              bool past_caches);
  // d_own, d_other (nodes, width), d_logits (edges,) of a gradient (nodes, width); scratch (nodes, 1 + 2 width), of
  // which the 2 width are for results past the caches.
  void (*backward)(const Edges&, const void* gradient, const void* own, const void* other, const void* shares,
                   void* d_own, void* d_other, void* d_logits, void* scratch, bool past_caches);
};

}  // namespace prograd::cpu
