#include "../../../csrc/cuda/projection.h"

#include "harness.h"

PF_EXPORT const char* simt_gram(Storage storage, const Tensor* tensors, int count, Scope scope, void* entries) {
  return with_workspace(tensors_workspace(storage, tensors, count, scope),
                        [&](void* workspace) { gram(storage, tensors, count, scope, entries, workspace, nullptr); });
}

PF_EXPORT const char* simt_project(Storage storage, const Tensor* tensors, int count, const Projection* projection) {
  return with_workspace(tensors_workspace(storage, tensors, count, projection->scope),
                        [&](void* workspace) { project(storage, tensors, count, *projection, workspace, nullptr); });
}
