// The arguments that the dual loss and the linear dual loss share, kept alive for a launch on CUDA tensors.
#pragma once

#include "../operators/dual_loss.h"
#include "dual_loss.h"
#include "launch.h"

namespace prograd::cuda {

class Rows {
 public:
  Rows(const Launch& launch, const RowOptions& options, at::ScalarType dtype, at::Tensor& losses,
       at::Tensor& cotangents, at::Tensor& correct)
      : labels_(launch.operand(options.labels, at::kLong, "labels")),
        teacher_offset_(launch.operand(options.teacher_offset, accumulation_dtype(dtype), "teacher_offset")),
        task_weight_(launch.operand(options.task_weight, accumulation_dtype(dtype), "task_weight")),
        general_weight_(launch.operand(options.general_weight, accumulation_dtype(dtype), "general_weight")),
        losses_(losses, accumulation_dtype(dtype)),
        cotangents_(cotangents, accumulation_dtype(dtype)),
        correct_(correct, at::kLong),
        temperature_(options.temperature),
        soft_ce_(options.soft_ce),
        reduction_(Reduction(options.reduction)) {}

  LossOptions options() const {
    return {pointer_or_null<int64_t>(labels_),
            pointer_or_null(teacher_offset_),
            pointer_or_null(task_weight_),
            pointer_or_null(general_weight_),
            temperature_,
            soft_ce_,
            reduction_,
            losses_.data(),
            cotangents_.data(),
            reinterpret_cast<int64_t*>(correct_.data())};
  }

  void write_back() const {
    losses_.write_back();
    cotangents_.write_back();
    correct_.write_back();
  }

 private:
  at::Tensor labels_, teacher_offset_, task_weight_, general_weight_;
  Written losses_, cotangents_, correct_;
  double temperature_;
  bool soft_ce_;
  Reduction reduction_;
};

}  // namespace prograd::cuda
