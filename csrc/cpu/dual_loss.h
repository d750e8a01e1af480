// The kernels of dual_loss_out.
#pragma once

#include "dispatch.h"

namespace prograd::cpu {

// Classes of a row whose logits stay in the first-level cache from their maximum to their exponentials.
constexpr std::int64_t dual_loss_block = 1024;

// Elements of the accumulation dtype: for each of two rows its exponentials, read in registers that may reach beyond
// the last one, and the maxima of its blocks.
constexpr std::int64_t dual_loss_scratch(std::int64_t classes) {
  const std::int64_t exponentials = 3 * (classes + widest_register), maxima = 2 * (classes / dual_loss_block + 1);
  return 2 * ((exponentials + maxima) / widest_register + 2) * widest_register;
}

struct DualLossRow {
  const void *student, *teacher;  // (classes,)
  std::int64_t classes, label;
  const void* teacher_offset;  // (classes,) in the accumulation dtype, or null
  double temperature;
  bool soft_ce;
  double task_weight, general_weight;                      // of the losses
  double task_cotangent_weight, general_cotangent_weight;  // the same over B for a mean
  void *task_cotangent, *general_cotangent;  // (classes,) in the accumulation dtype, perhaps where such logits are
  bool stream;                               // write past the caches: results too large to be read from there again
};

struct DualLosses {
  double task, general;
  bool correct;
};

struct DualLossKernels {
  // Both losses of rows of one length, and both cotangents; scratch: dual_loss_scratch(classes) elements.
  void (*rows)(const DualLossRow*, std::int64_t count, void* scratch, DualLosses* results);
};

}  // namespace prograd::cpu
