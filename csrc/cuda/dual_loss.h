// The launcher of dual_loss_out; see launch.h.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../common/types.h"

namespace prograd::cuda {

// What the dual loss and the linear dual loss have in common. Offset, weights and losses are in the arithmetic type.
struct LossOptions {
  const int64_t* labels;       // (B,)
  const void* teacher_offset;  // (C,) or null
  const void* task_weight;     // (B,) or null
  const void* general_weight;  // (B,) or null
  double temperature;
  bool soft_ce;
  Reduction reduction;
  void* losses;      // (2, B) for Reduction::none, else (2,)
  void* cotangents;  // two arrays of the shape of the student's argument, in the arithmetic type
  int64_t* correct;  // ()
};

size_t dual_loss_workspace(Storage storage, int64_t rows);

// student, teacher: (rows, classes).
void dual_loss(Storage storage, const void* student, const void* teacher, int64_t rows, int64_t classes,
               const LossOptions& options, void* workspace, void* stream);

}  // namespace prograd::cuda
