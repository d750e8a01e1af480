// linear_dual_loss, linear_dual_loss_out and linear_cross_entropy_out: their arguments, and what is asked of them.
#pragma once

#include "dual_loss.h"

namespace prograd {

struct LinearDualLossArguments {
  using Signature = void(const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&, MaybeTensor,
                         MaybeTensor, MaybeTensor, double, double, bool, int64_t);

  const at::Tensor &features, &student_classes, &teacher_classes, &labels;
  MaybeTensor teacher_offset, task_weight, general_weight;
  double scale, temperature;
  bool soft_ce;
  int64_t reduction;

  const at::Tensor& by_row() const { return features; }
  const at::Tensor& differentiated() const { return student_classes; }
  LossResults room() const { return {features, student_classes, reduction, student_classes}; }
  RowOptions row_options() const {
    return {labels, teacher_offset, task_weight, general_weight, temperature, soft_ce, reduction};
  }
};

inline Arguments check_inputs(c10::DeviceType type, const LinearDualLossArguments& all) {
  const Arguments arguments("features", all.features, type);
  arguments.dimensions("features", all.features, 2);
  arguments.dimensions("student_classes", all.student_classes, 2);
  const int64_t classes = all.student_classes.size(0), width = all.features.size(1);
  arguments.floating("student_classes", all.student_classes, {classes, width});
  arguments.floating("teacher_classes", all.teacher_classes, {classes, width});
  check_rows(arguments, all.features.size(0), classes, all.row_options());
  return arguments;
}

inline void check_linear_cross_entropy(c10::DeviceType type, const at::Tensor& features, const at::Tensor& classes,
                                       const at::Tensor& labels, const at::Tensor& loss, const at::Tensor& cotangents) {
  const Arguments arguments("features", features, type);
  arguments.dimensions("features", features, 2);
  arguments.dimensions("classes", classes, 2);
  arguments.floating("classes", classes, {classes.size(0), features.size(1)});
  TORCH_CHECK_VALUE(features.size(0) == 0 || classes.size(0) > 0, "classes: expected at least one, got none.");
  arguments.integers("labels", labels, {features.size(0)});
  arguments.result("loss", loss, {});
  arguments.result("cotangents", cotangents, classes.sizes());
}

}  // namespace prograd
