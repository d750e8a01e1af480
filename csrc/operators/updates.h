// project_adamw_ and project_sgd_: their arguments, and what is asked of them.
#pragma once

#include "projection.h"

namespace prograd {

struct AdamWArguments {
  static constexpr const char* name = "prograd_fast::project_adamw_";
  using Signature = void(at::TensorList, at::TensorList, at::TensorList, at::TensorList, at::TensorList, at::TensorList,
                         at::TensorList, at::Tensor&, MaybeTensor, MaybeTensor, double, double, double, double, double,
                         double, double, int64_t, bool, bool, MaybeTensor);

  at::TensorList params, task, general, exp_avgs, exp_avg_sqs, max_exp_avg_sqs, steps;
  at::Tensor& entries;
  MaybeTensor coefficients, lr_tensor;
  double lr, beta1, beta2, eps, weight_decay, lambda, noise_floor;
  int64_t scope;
  bool amsgrad, maximize;
  MaybeTensor found_inf;
};

struct SGDArguments {
  static constexpr const char* name = "prograd_fast::project_sgd_";
  using Signature = void(at::TensorList, at::TensorList, at::TensorList, at::TensorList, at::Tensor&, MaybeTensor,
                         MaybeTensor, double, double, double, double, double, double, int64_t, bool, bool, bool,
                         MaybeTensor);

  at::TensorList params, task, general, momentum_buffers;
  at::Tensor& entries;
  MaybeTensor coefficients, lr_tensor;
  double lr, momentum, dampening, weight_decay, lambda, noise_floor;
  int64_t scope;
  bool nesterov, maximize, first;
  MaybeTensor found_inf;
};

// What both updates share.
template <typename Update>
Arguments check_shared(c10::DeviceType type, const Update& all) {
  const Arguments arguments = check_gradients(type, all.task, all.general, all.scope, all.entries, all.coefficients);
  arguments.same("params", all.params, all.task, true);
  if (all.lr_tensor && all.lr_tensor->is_cpu()) {  // read on the host, wherever the parameters are
    Arguments("lr_tensor", *all.lr_tensor, at::kCPU).number("lr_tensor", all.lr_tensor);
  } else {
    arguments.number("lr_tensor", all.lr_tensor);
  }
  arguments.number("found_inf", all.found_inf);
  check_rule(all.lambda, all.noise_floor);
  return arguments;
}

inline void check_update(c10::DeviceType type, const AdamWArguments& all) {
  const Arguments arguments = check_shared(type, all);
  arguments.same("exp_avgs", all.exp_avgs, all.params, true);
  arguments.same("exp_avg_sqs", all.exp_avg_sqs, all.params, true);
  arguments.same("max_exp_avg_sqs", all.max_exp_avg_sqs, all.amsgrad ? all.params : at::TensorList(), true);
  TORCH_CHECK_VALUE(all.steps.size() == all.params.size(), "steps: expected ", all.params.size(), " tensors, got ",
                    all.steps.size(), ".");
  for (size_t i = 0; i < all.steps.size(); ++i) {
    arguments.number("steps", all.steps[i], int64_t(i));
    const at::ScalarType dtype = all.steps[i].scalar_type();
    TORCH_CHECK_TYPE(dtype == at::kFloat || dtype == at::kDouble, "steps[", i, "]: expected float32 or float64, got ",
                     dtype, ".");
  }
}

inline void check_update(c10::DeviceType type, const SGDArguments& all) {
  const Arguments arguments = check_shared(type, all);
  const bool needed = all.momentum != 0 || !all.momentum_buffers.empty();
  arguments.same("momentum_buffers", all.momentum_buffers, needed ? all.params : at::TensorList(), true);
}

namespace cpu {  // also called by the eager fast path, without the dispatcher

void project_adamw(const AdamWArguments& all);
void project_sgd(const SGDArguments& all);

}  // namespace cpu
}  // namespace prograd
