// The kernels of project_adamw_ and project_sgd_.
#pragma once

#include "../formulas/updates.h"
#include "dispatch.h"

namespace prograd::cpu {

struct AdamWTensors {
  void* param;
  const void *task, *general;
  void *exp_avg, *exp_avg_sq, *max_exp_avg_sq;  // the last one null without amsgrad
};

struct SGDTensors {
  void* param;
  const void *task, *general;
  void* momentum_buffer;  // null without momentum
};

// One step of n elements on g = alpha a + beta b. The moments are stored as the parameter is, or in its
// accumulation dtype (wide).
struct UpdateKernels {
  void (*adamw)(bool wide_moments, const AdamWTensors&, std::int64_t n, const AdamW<double>&, double alpha,
                double beta);
  void (*sgd)(bool wide_moments, const SGDTensors&, std::int64_t n, const SGD<double>&, double alpha, double beta);
};

}  // namespace prograd::cpu
