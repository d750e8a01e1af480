#include "../../../csrc/cuda/dual_loss.h"

#include "harness.h"

PF_EXPORT const char* simt_dual_loss(Storage storage, const void* student, const void* teacher, int64_t rows,
                                     int64_t classes, const LossOptions* options) {
  return with_workspace(dual_loss_workspace(storage, rows, classes), [&](void* workspace) {
    dual_loss(storage, student, teacher, rows, classes, *options, workspace, nullptr);
  });
}
