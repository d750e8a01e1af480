#include "../../../csrc/cuda/linear_dual_loss.h"

#include "harness.h"

PF_EXPORT const char* simt_linear_dual_loss(Storage storage, const void* features, const void* student,
                                            const void* teacher, int64_t rows, int64_t classes, int64_t width,
                                            double scale, const LossOptions* options) {
  return with_workspace(linear_dual_loss_workspace(storage, rows, classes), [&](void* workspace) {
    linear_dual_loss(storage, features, student, teacher, rows, classes, width, scale, *options, workspace, nullptr);
  });
}
