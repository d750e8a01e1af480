// What difference_loss_out and structure_loss_out ask of their arguments.
#pragma once

#include "edges.h"

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

inline void check_structure_loss(c10::DeviceType type, const at::Tensor& prediction, const at::Tensor& target,
                                 const at::Tensor& rows, const at::Tensor& columns, double omega1, double omega2,
                                 double epsilon, const at::Tensor& losses, const at::Tensor& cotangents) {
  const Arguments arguments("prediction", prediction, type);
  arguments.dimensions("prediction", prediction, 3);
  arguments.floating("target", target, prediction.sizes());
  check_ends(arguments, rows, columns, prediction.size(1));
  check_positive("omega1", omega1);
  check_positive("omega2", omega2);
  check_positive("epsilon", epsilon);
  arguments.result("losses", losses, {2});
  arguments.result("cotangents", cotangents, {2, prediction.size(0), prediction.size(1), prediction.size(2)});
}

}  // namespace prograd
