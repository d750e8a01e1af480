// The launcher of difference_loss_out; see launch.h.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../common/types.h"

namespace prograd::cuda {

// factor times the sum of (prediction - target)^2, or of Soft Wing's function, and its gradient
struct DifferenceOptions {
  bool soft_wing;
  double omega1, omega2, epsilon, factor;
  void* loss;        // () in the arithmetic type
  void* cotangents;  // in the arithmetic type
};

size_t difference_loss_workspace(Storage storage, int64_t size);

void difference_loss(Storage storage, const void* prediction, const void* target, int64_t size,
                     const DifferenceOptions& options, void* workspace, void* stream);

}  // namespace prograd::cuda
