// The kernel of normalised_focal_loss_out.
#pragma once

#include "dispatch.h"

namespace prograd::cpu {

struct Mask {
  const void* logits;  // (pixels,)
  const std::int64_t* labels;
  void* cotangents;  // in the accumulation dtype
  std::int64_t pixels;
  double alpha, gamma, max_mult, eps;
};

struct FocalKernels {
  double (*loss)(const Mask&);  // of one picture
};

}  // namespace prograd::cpu
