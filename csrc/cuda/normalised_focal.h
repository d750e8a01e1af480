// The launcher of normalised_focal_loss_out; see launch.h.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../common/types.h"

namespace prograd::cuda {

struct Masks {
  const void* logits;  // (pictures, pixels)
  const int64_t* labels;
  int64_t pictures, pixels;
  double alpha, gamma, max_mult, eps;
  void* losses;      // (pictures,) in the arithmetic type
  void* cotangents;  // as the logits, in the arithmetic type
};

size_t normalised_focal_workspace(Storage storage, const Masks& masks);

void normalised_focal_loss(Storage storage, const Masks& masks, void* workspace, void* stream);

}  // namespace prograd::cuda
