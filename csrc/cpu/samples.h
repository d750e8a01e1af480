// The kernels of sampled_cross_entropy_out and sampled_log_probs_out.
#pragma once

#include "dispatch.h"

namespace prograd::cpu {

// One row of the logits of several samples, sample_stride elements apart.
struct SampledRow {
  const void* logits;  // (samples, classes)
  std::int64_t samples, classes, sample_stride;
  void* cotangents;  // laid out as the logits, in the accumulation dtype
  void* scratch;     // 3 x samples in the accumulation dtype
  bool stream;       // write past the caches
};

struct SampleKernels {
  // The loss; the cotangents are multiplied by weight.
  double (*cross_entropy)(const SampledRow&, std::int64_t label, double weight);
  void (*log_probs)(const SampledRow&, void* log_probs);  // (classes,) in the accumulation dtype
};

}  // namespace prograd::cpu
