// What gram_out and project_ ask of their arguments.
#pragma once

#include "../common/arguments.h"

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
                                 const at::Tensor* entries, const at::Tensor* coefficients, bool written = false) {
  TORCH_CHECK_VALUE(0 <= scope && scope <= int64_t(Scope::global),
                    "scope: expected 0 (tensor), 1 (row) or 2 (global), got ", scope, ".");
  const Arguments arguments(task.empty() ? (entries ? "entries" : "coefficients") : "task",
                            task.empty() ? (entries ? *entries : *coefficients) : task[0], type);
  arguments.same("task", task, task, written);
  arguments.same("general", general, task);
  const int64_t units = count_units(task, Scope(scope));
  if (entries) arguments.result("entries", *entries, {units, 3});
  if (coefficients) arguments.floating("coefficients", *coefficients, {units, 2});
  return arguments;
}

}  // namespace prograd
