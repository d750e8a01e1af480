// What difference_loss_out asks of its arguments.
#pragma once

#include "../common/arguments.h"

namespace prograd {

inline void check_difference_loss(c10::DeviceType type, const at::Tensor& prediction, const at::Tensor& target,
                                  bool soft_wing, double omega1, double omega2, double epsilon, const at::Tensor& loss,
                                  const at::Tensor& cotangents) {
  const Arguments arguments("prediction", prediction, type);
  arguments.floating("prediction", prediction, prediction.sizes());
  arguments.floating("target", target, prediction.sizes());
  if (soft_wing) {
    check_positive("omega1", omega1);
    check_positive("omega2", omega2);
    check_positive("epsilon", epsilon);
  }
  arguments.result("loss", loss, {});
  arguments.result("cotangents", cotangents, prediction.sizes());
}

}  // namespace prograd
