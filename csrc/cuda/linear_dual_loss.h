// The launcher of linear_dual_loss_out and linear_cross_entropy_out; see launch.h.
#pragma once

#include <cstddef>
#include <cstdint>

#include "dual_loss.h"

namespace prograd::cuda {

size_t linear_dual_loss_workspace(Storage storage, int64_t rows, int64_t classes);

// features: (rows, width); student, teacher: (classes, width). teacher null: the student is its own; cotangents are the
// task's alone.
void linear_dual_loss(Storage storage, const void* features, const void* student, const void* teacher, int64_t rows,
                      int64_t classes, int64_t width, double scale, const LossOptions& options, void* workspace,
                      void* stream);

}  // namespace prograd::cuda
