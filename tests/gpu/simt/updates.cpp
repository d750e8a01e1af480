#include "../../../csrc/cuda/updates.h"

#include "harness.h"

PF_EXPORT const char* simt_adamw(Storage storage, Storage states, const Tensor* tensors, int count,
                                 const Projection* projection, const AdamWSettings* settings) {
  return with_workspace(tensors_workspace(storage, tensors, count, projection->scope), [&](void* workspace) {
    adamw(storage, states, tensors, count, *projection, *settings, workspace, nullptr);
  });
}

PF_EXPORT const char* simt_sgd(Storage storage, Storage states, const Tensor* tensors, int count,
                               const Projection* projection, const SGDSettings* settings) {
  return with_workspace(tensors_workspace(storage, tensors, count, projection->scope), [&](void* workspace) {
    sgd(storage, states, tensors, count, *projection, *settings, workspace, nullptr);
  });
}
