#include "../../../csrc/cuda/edges.h"

#include "harness.h"

PF_EXPORT const char* simt_edge_softmax_sum(Storage storage, const Graph* graph, const void* own, const void* other,
                                            const void* logits, void* y) {
  return with_workspace(edge_softmax_sum_workspace(storage, *graph), [&](void* workspace) {
    edge_softmax_sum(storage, *graph, own, other, logits, y, workspace, nullptr);
  });
}

PF_EXPORT const char* simt_edge_softmax_sum_backward(Storage storage, const Graph* graph, const void* gradient,
                                                     const void* own, const void* other, const void* logits,
                                                     void* d_own, void* d_other, void* d_logits) {
  return with_workspace(edge_softmax_sum_backward_workspace(storage, *graph), [&](void* workspace) {
    edge_softmax_sum_backward(storage, *graph, gradient, own, other, logits, d_own, d_other, d_logits, workspace,
                              nullptr);
  });
}
