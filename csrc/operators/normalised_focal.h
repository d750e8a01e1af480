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

}  // namespace prograd
