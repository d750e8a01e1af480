// What normalised_focal_loss_out asks of its arguments.
#pragma once

#include "../common/arguments.h"

namespace prograd {

inline void check_normalised_focal_loss(c10::DeviceType type, const at::Tensor& logits, const at::Tensor& labels,
                                        double gamma, double eps, const at::Tensor& losses,
                                        const at::Tensor& cotangents) {
  const Arguments arguments("logits", logits, type);
  arguments.dimensions("logits", logits, 2);
  arguments.integers("labels", labels, logits.sizes());
  check_positive("gamma", gamma);
  check_positive("eps", eps);
  arguments.result("losses", losses, {logits.size(0)});
  arguments.result("cotangents", cotangents, logits.sizes());
}

// The kernels make NaN of the loss of a picture with another label. Only then somebody looks for it, and only on a CPU.
inline void check_marks(const int64_t* labels, int64_t pixels) {
  for (int64_t i = 0; i < pixels; ++i) {
    TORCH_CHECK_VALUE(labels[i] >= -1 && labels[i] <= 1, "labels: expected 1, 0 or -1, got ", labels[i],
                      ". Use 1 for the object, -1 to ignore.");
  }
}

}  // namespace prograd
