#include "projection.h"

#include "harness.h"
#include "tensor_lists.cuh"

PF_EXPORT const char* simt_gram(Storage storage, const Tensor* tensors, int count, Scope scope, void* entries) {
  return with_workspace(tensors_workspace(storage, tensors, count, scope),
                        [&](void* workspace) { gram(storage, tensors, count, scope, entries, workspace, nullptr); });
}

PF_EXPORT const char* simt_project(Storage storage, const Tensor* tensors, int count, const Projection* projection) {
  return with_workspace(tensors_workspace(storage, tensors, count, projection->scope),
                        [&](void* workspace) { project(storage, tensors, count, *projection, workspace, nullptr); });
}

// The first element of a chunk of one tensor.
PF_EXPORT int64_t simt_chunk_offset(int64_t units, int64_t unit_size, int64_t index) {
  Tensor tensor = {};
  tensor.units = units;
  tensor.unit_size = unit_size;
  return find_chunk(make_tables<kFewTensors>(&tensor, 1, Scope::row, 1)[0], index).offset;
}
