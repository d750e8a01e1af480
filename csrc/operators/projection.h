// gram_out and project_out: their arguments, and what is asked of them.
#pragma once

#include "../common/arguments.h"
#include "../common/unpacked.h"

namespace prograd {

// How many conflict tests there are: rows of the Gram entries and of the coefficients.
inline int64_t count_units(at::TensorList tensors, Scope scope) {
  if (scope == Scope::global) return 1;
  if (scope == Scope::tensor) return int64_t(tensors.size());
  int64_t units = 0;
  for (const at::Tensor& tensor : tensors) units += tensor.dim() > 0 ? tensor.size(0) : 1;
  return units;
}

// The two gradients, and what belongs to their units: entries, coefficients or both.
inline Arguments check_gradients(c10::DeviceType type, at::TensorList task, at::TensorList general, int64_t scope,
                                 const at::Tensor& entries, MaybeTensor coefficients = std::nullopt) {
  TORCH_CHECK_VALUE(0 <= scope && scope <= int64_t(Scope::global),
                    "scope: expected 0 (tensor), 1 (row) or 2 (global), got ", scope, ".");
  const Arguments arguments(task.empty() ? "entries" : "task", task.empty() ? entries : task[0], type);
  arguments.same("task", task, task);
  arguments.same("general", general, task);
  const int64_t units = count_units(task, Scope(scope));
  arguments.result("entries", entries, {units, 3});
  arguments.floating("coefficients", coefficients, {units, 2});
  return arguments;
}

// The numbers of ProGrad's rule.
inline void check_rule(double lambda, double noise_floor) {
  TORCH_CHECK_VALUE(lambda >= 0 && std::isfinite(lambda), "lambda_: expected a number of at least 0, got ", lambda,
                    ".");
  TORCH_CHECK_VALUE(noise_floor >= 0 && std::isfinite(noise_floor),
                    "noise_floor: expected a number of at least 0, got ", noise_floor, ".");
}

struct ProjectArguments {
  static constexpr const char* name = "prograd_fast::project_out";
  using Signature = void(at::TensorList, at::TensorList, MaybeTensor, double, double, int64_t, at::Tensor&,
                         at::TensorList);

  at::TensorList task, general;
  MaybeTensor coefficients;
  double lambda, noise_floor;
  int64_t scope;
  at::Tensor& entries;
  at::TensorList projected;
};

inline void check_project(c10::DeviceType type, const ProjectArguments& all) {
  const Arguments arguments = check_gradients(type, all.task, all.general, all.scope, all.entries, all.coefficients);
  check_rule(all.lambda, all.noise_floor);
  arguments.same("projected", all.projected, all.task, true);
  for (size_t i = 0; i < all.task.size(); ++i) {
    const at::ScalarType dtype = all.task[i].scalar_type(), got = all.projected[i].scalar_type();
    TORCH_CHECK_TYPE(got == dtype, "projected[", i, "]: expected ", dtype, " as the task gradient, got ", got, ".");
  }
  Arguments::apart("projected", all.projected, all.task, all.general);
}

namespace cpu {  // also called by the eager fast path, without the dispatcher

void project(const ProjectArguments& all);

}  // namespace cpu

}  // namespace prograd
