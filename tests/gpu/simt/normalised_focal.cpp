#include "../../../csrc/cuda/normalised_focal.h"

#include "harness.h"

PF_EXPORT const char* simt_normalised_focal_loss(Storage storage, const Masks* masks) {
  return with_workspace(normalised_focal_workspace(storage, *masks),
                        [&](void* workspace) { normalised_focal_loss(storage, *masks, workspace, nullptr); });
}
