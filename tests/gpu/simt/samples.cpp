#include "../../../csrc/cuda/samples.h"

#include "harness.h"

PF_EXPORT const char* simt_sampled_cross_entropy(Storage storage, const void* logits, const int64_t* labels,
                                                 int64_t samples, int64_t rows, int64_t classes, Reduction reduction,
                                                 void* losses, void* cotangents) {
  return with_workspace(samples_workspace(storage, samples, rows), [&](void* workspace) {
    sampled_cross_entropy(storage, logits, labels, samples, rows, classes, reduction, losses, cotangents, workspace,
                          nullptr);
  });
}

PF_EXPORT const char* simt_sampled_log_probs(Storage storage, const void* logits, int64_t samples, int64_t rows,
                                             int64_t classes, void* log_probs) {
  return with_workspace(samples_workspace(storage, samples, rows), [&](void* workspace) {
    sampled_log_probs(storage, logits, samples, rows, classes, log_probs, workspace, nullptr);
  });
}
