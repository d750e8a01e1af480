// What sampled_cross_entropy_out and sampled_log_probs_out ask of their arguments.
#pragma once

#include "../common/arguments.h"

namespace prograd {

inline Arguments check_samples(c10::DeviceType type, const at::Tensor& logits) {
  const Arguments arguments("logits", logits, type);
  arguments.dimensions("logits", logits, 3);
  TORCH_CHECK_VALUE(logits.size(1) == 0 || logits.numel() > 0,
                    "logits: expected at least one sample and one class, got shape ", logits.sizes(), ".");
  return arguments;
}

inline void check_sampled_cross_entropy(c10::DeviceType type, const at::Tensor& logits, const at::Tensor& labels,
                                        int64_t reduction, const at::Tensor& losses, const at::Tensor& cotangents) {
  const Arguments arguments = check_samples(type, logits);
  check_reduction(reduction);
  arguments.integers("labels", labels, {logits.size(1)});
  arguments.result("losses", losses, Reduction(reduction) == Reduction::none ? labels.sizes() : at::IntArrayRef());
  arguments.result("cotangents", cotangents, logits.sizes());
}

inline void check_sampled_log_probs(c10::DeviceType type, const at::Tensor& logits, const at::Tensor& log_probs) {
  check_samples(type, logits).result("log_probs", log_probs, logits.sizes().slice(1));
}

}  // namespace prograd
