#include "../../../csrc/cuda/differences.h"

#include "harness.h"

PF_EXPORT const char* simt_difference_loss(Storage storage, const void* prediction, const void* target, int64_t size,
                                           const DifferenceOptions* options) {
  return with_workspace(difference_loss_workspace(storage, size), [&](void* workspace) {
    difference_loss(storage, prediction, target, size, *options, workspace, nullptr);
  });
}

PF_EXPORT const char* simt_structure_loss(Storage storage, const Structure* structure) {
  return with_workspace(structure_loss_workspace(storage, *structure),
                        [&](void* workspace) { structure_loss(storage, *structure, workspace, nullptr); });
}
