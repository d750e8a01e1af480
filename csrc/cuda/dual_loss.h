// The launcher of dual_loss_out; see launch.h.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../common/types.h"

namespace prograd::cuda {

// Offset, weights and losses are in the arithmetic type. A label that is no class makes its row's task loss and its
// task cotangents NaN.
struct LossOptions {
  const int64_t* labels;       // (B,)
  const void* teacher_offset;  // (C,) or null
  const void* task_weight;     // (B,) or null
  const void* general_weight;  // (B,) or null
  double temperature;
  bool soft_ce;
  Reduction reduction;
  void *task, *general;  // (B,) for Reduction::none, else ()
  void* cotangents;      // (2, B, C) in the arithmetic type; may be where such logits are, the student's first
  int64_t* correct;      // ()
};

size_t dual_loss_workspace(Storage storage, int64_t rows, int64_t classes);

// student, teacher: (rows, classes).
void dual_loss(Storage storage, const void* student, const void* teacher, int64_t rows, int64_t classes,
               const LossOptions& options, void* workspace, void* stream);

}  // namespace prograd::cuda
