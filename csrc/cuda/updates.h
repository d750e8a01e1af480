// The launchers of project_adamw_ and project_sgd_; see launch.h.
#pragma once

#include <cstddef>
#include <cstdint>

#include "projection.h"

namespace prograd::cuda {

struct LearningRate {
  double value;
  const float* tensor;  // null, or on the device: then it counts
};

struct AdamWSettings {
  LearningRate lr;
  double beta1, beta2, eps, weight_decay;
};

struct SGDSettings {
  LearningRate lr;
  double momentum, dampening, weight_decay;
  bool nesterov, first;
};

// states: storage of Tensor::state, that of the parameters or float32.
void adamw(Storage storage, Storage states, const Tensor* tensors, int count, const Projection& projection,
           const AdamWSettings& settings, void* workspace, void* stream);

void sgd(Storage storage, Storage states, const Tensor* tensors, int count, const Projection& projection,
         const SGDSettings& settings, void* workspace, void* stream);

}  // namespace prograd::cuda
