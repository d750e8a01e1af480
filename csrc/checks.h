// What the operators ask of their arguments before anything is read or written, for CPU and GPU alike; the same in
// Python, for kernels that are written there: prograd_fast/ops/. A wrong call ends with a ValueError or TypeError that
// names the argument, what was expected and what came.
#pragma once

#include <ATen/ATen.h>
#include <ATen/MemoryOverlap.h>

#include <cmath>
#include <optional>
#include <string>

#include "operators.h"

namespace prograd {

inline at::ScalarType accumulation_dtype(at::ScalarType a) { return a == at::kDouble ? at::kDouble : at::kFloat; }

// The tensors of one call, all on one device of the type that the kernels are for.
class Arguments {
 public:
  using Maybe = const std::optional<at::Tensor>&;

  Arguments(const char* name, const at::Tensor& first, c10::DeviceType type) : device_(device_of(name, first)) {
    TORCH_CHECK_VALUE(device_.type() == type, name, ": expected a tensor on ", c10::DeviceTypeName(type, true),
                      ", got ", device_, ".");
  }

  // The dispatcher takes None for any tensor, which is then none.
  static void defined(const char* name, const at::Tensor& tensor, int64_t index = -1) {
    TORCH_CHECK_TYPE(tensor.defined(), label(name, index), ": expected a tensor, got None.");
  }

  // A floating-point tensor with so many dimensions, of any sizes.
  void dimensions(const char* name, const at::Tensor& tensor, int64_t count) const {
    dense(name, tensor);
    TORCH_CHECK_VALUE(tensor.dim() == count, name, ": expected ", count, " dimensions, got shape ", tensor.sizes(), ".");
    floating(name, tensor, tensor.sizes());
  }

  void floating(const char* name, const at::Tensor& tensor, at::IntArrayRef sizes, int64_t index = -1) const {
    dense(name, tensor, index);
    const at::ScalarType dtype = tensor.scalar_type();
    TORCH_CHECK_TYPE(dtype == at::kFloat || dtype == at::kDouble || dtype == at::kBFloat16 || dtype == at::kHalf,
                     label(name, index), ": expected float64, float32, bfloat16 or float16, got ", dtype, ".");
    placed(name, tensor, sizes, index);
  }
  void floating(const char* name, Maybe tensor, at::IntArrayRef sizes) const {
    if (tensor) floating(name, *tensor, sizes);
  }

  void integers(const char* name, const at::Tensor& tensor, at::IntArrayRef sizes) const {
    dense(name, tensor);
    TORCH_CHECK_TYPE(tensor.scalar_type() == at::kLong, name, ": expected int64, got ", tensor.scalar_type(), ".");
    placed(name, tensor, sizes);
  }

  // Floating-point, to write to.
  void result(const char* name, const at::Tensor& tensor, at::IntArrayRef sizes) const {
    floating(name, tensor, sizes);
    own_memory(name, tensor);
  }

  // Of one dtype, and contiguous, or contiguous in the last dimension.
  void whole(const char* name, const at::Tensor& tensor, at::ScalarType dtype, at::IntArrayRef sizes) const {
    of_dtype(name, tensor, dtype, sizes);
    contiguous(name, tensor);
  }
  void rows(const char* name, const at::Tensor& tensor, at::ScalarType dtype, at::IntArrayRef sizes,
            bool written = false) const {
    of_dtype(name, tensor, dtype, sizes);
    TORCH_CHECK_VALUE(tensor.size(-1) <= 1 || tensor.stride(-1) == 1, name, ": expected contiguous rows, got strides ",
                      tensor.strides(), " for shape ", sizes, ": call .contiguous() first.");
    if (written) own_memory(name, tensor);
  }

  // As many tensors as in another list, each of its partner's shape.
  void same(const char* name, at::TensorList tensors, at::TensorList like, bool written = false) const {
    TORCH_CHECK_VALUE(tensors.size() == like.size(), name, ": expected ", like.size(), " tensors, got ",
                      tensors.size(), ".");
    for (size_t i = 0; i < tensors.size(); ++i) {
      defined(name, like[i], int64_t(i));
      floating(name, tensors[i], like[i].sizes(), int64_t(i));
      if (written) own_memory(name, tensors[i], int64_t(i));
    }
  }

  // One number of a dtype that the host or a kernel reads as it is.
  void number(const char* name, const at::Tensor& tensor, int64_t index = -1) const {
    dense(name, tensor, index);
    TORCH_CHECK_VALUE(tensor.numel() == 1, label(name, index), ": expected one element, got shape ", tensor.sizes(),
                      ".");
    floating(name, tensor, tensor.sizes(), index);
  }
  void number(const char* name, Maybe tensor) const {
    if (tensor) number(name, *tensor);
  }

 private:
  static c10::Device device_of(const char* name, const at::Tensor& tensor) {
    defined(name, tensor);
    return tensor.device();
  }

  static std::string label(const char* name, int64_t index) {
    return index < 0 ? name : std::string(name) + "[" + std::to_string(index) + "]";
  }

  static void dense(const char* name, const at::Tensor& tensor, int64_t index = -1) {
    defined(name, tensor, index);
    TORCH_CHECK_TYPE(tensor.layout() == at::kStrided && tensor.has_storage(), label(name, index),
                     ": expected a dense tensor, got layout ", tensor.layout(), ".");
  }

  void of_dtype(const char* name, const at::Tensor& tensor, at::ScalarType dtype, at::IntArrayRef sizes) const {
    dense(name, tensor);
    TORCH_CHECK_TYPE(tensor.scalar_type() == dtype, name, ": expected ", dtype, ", got ", tensor.scalar_type(), ".");
    floating(name, tensor, sizes);
  }

  static void contiguous(const char* name, const at::Tensor& tensor) {
    TORCH_CHECK_VALUE(tensor.is_contiguous(), name, ": expected contiguous memory, got strides ", tensor.strides(),
                      " for shape ", tensor.sizes(), ": call .contiguous() first.");
  }

  static void own_memory(const char* name, const at::Tensor& written, int64_t index = -1) {
    TORCH_CHECK_VALUE(written.is_contiguous() || at::has_internal_overlap(written) != at::MemOverlap::Yes,
                      label(name, index), ": expected a place for each element, got an expanded tensor: "
                      "call .clone() first.");
  }

  // Of this shape, on the device of the others, with memory for all of its elements: that of a parameter may have been
  // given back while its shape stays, as sharding does between two steps.
  void placed(const char* name, const at::Tensor& tensor, at::IntArrayRef sizes, int64_t index = -1) const {
    TORCH_CHECK_VALUE(tensor.sizes() == sizes, label(name, index), ": expected shape ", sizes, ", got ",
                      tensor.sizes(), ".");
    TORCH_CHECK_VALUE(tensor.device() == device_, label(name, index), ": expected device ", device_,
                      " as for the others, got ", tensor.device(), ".");
    const size_t needed = tensor.is_contiguous()
                              ? size_t(tensor.storage_offset() + tensor.numel()) * tensor.itemsize()
                              : at::detail::computeStorageNbytes(sizes, tensor.strides(), tensor.itemsize(),
                                                                 tensor.storage_offset());
    TORCH_CHECK_VALUE(tensor.numel() == 0 || tensor.storage().nbytes() >= needed, label(name, index), ": expected ",
                      needed, " bytes of memory, got ", tensor.storage().nbytes(), ": it was freed.");
  }

  c10::Device device_;
};

inline void check_positive(const char* name, double value) {
  TORCH_CHECK_VALUE(value > 0 && std::isfinite(value), name, ": expected a number above 0, got ", value, ".");
}

inline void check_reduction(int64_t reduction) {
  TORCH_CHECK_VALUE(reduction >= none && reduction <= sum, "reduction: expected 0 (none), 1 (mean) or 2 (sum), got ",
                    reduction, ".");
}

// ---- losses: what goes in, then what comes out

struct RowOptions {  // what belongs to a row or a class
  const at::Tensor& labels;
  Arguments::Maybe teacher_offset, task_weight, general_weight;
  double temperature;
  int64_t reduction;
};

inline void check_rows(const Arguments& arguments, int64_t rows, int64_t classes, const RowOptions& options) {
  TORCH_CHECK_VALUE(rows == 0 || classes > 0, "classes: expected at least one, got none.");
  arguments.integers("labels", options.labels, {rows});
  arguments.floating("teacher_offset", options.teacher_offset, {classes});
  arguments.floating("task_weight", options.task_weight, {rows});
  arguments.floating("general_weight", options.general_weight, {rows});
  check_positive("temperature", options.temperature);
  check_reduction(options.reduction);
}

inline Arguments check_dual_loss(c10::DeviceType type, const at::Tensor& student, const at::Tensor& teacher,
                                 const RowOptions& options) {
  const Arguments arguments("student", student, type);
  arguments.dimensions("student", student, 2);
  arguments.floating("teacher", teacher, student.sizes());
  check_rows(arguments, student.size(0), student.size(1), options);
  return arguments;
}

inline Arguments check_linear_dual_loss(c10::DeviceType type, const at::Tensor& features,
                                        const at::Tensor& student_classes, const at::Tensor& teacher_classes,
                                        const RowOptions& options) {
  const Arguments arguments("features", features, type);
  arguments.dimensions("features", features, 2);
  arguments.dimensions("student_classes", student_classes, 2);
  const int64_t classes = student_classes.size(0), width = features.size(1);
  arguments.floating("student_classes", student_classes, {classes, width});
  arguments.floating("teacher_classes", teacher_classes, {classes, width});
  check_rows(arguments, features.size(0), classes, options);
  return arguments;
}

// rows: of the losses; like: what they are differentiated in
inline void check_results(const Arguments& arguments, int64_t rows, const at::Tensor& like, int64_t reduction,
                          const at::Tensor& losses, const at::Tensor& cotangents, const at::Tensor& correct) {
  if (reduction == none) {
    arguments.result("losses", losses, {2, rows});
  } else {
    arguments.result("losses", losses, {2});
  }
  arguments.result("cotangents", cotangents, {2, like.size(0), like.size(1)});
  arguments.integers("correct", correct, {});
}

inline void check_linear_cross_entropy(c10::DeviceType type, const at::Tensor& features, const at::Tensor& classes,
                                       const at::Tensor& labels, const at::Tensor& loss,
                                       const at::Tensor& cotangents) {
  const Arguments arguments("features", features, type);
  arguments.dimensions("features", features, 2);
  arguments.dimensions("classes", classes, 2);
  arguments.floating("classes", classes, {classes.size(0), features.size(1)});
  TORCH_CHECK_VALUE(features.size(0) == 0 || classes.size(0) > 0, "classes: expected at least one, got none.");
  arguments.integers("labels", labels, {features.size(0)});
  arguments.result("loss", loss, {});
  arguments.result("cotangents", cotangents, classes.sizes());
}

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
  arguments.result("losses", losses, reduction == none ? labels.sizes() : at::IntArrayRef());
  arguments.result("cotangents", cotangents, logits.sizes());
}

inline void check_sampled_log_probs(c10::DeviceType type, const at::Tensor& logits, const at::Tensor& log_probs) {
  check_samples(type, logits).result("log_probs", log_probs, logits.sizes().slice(1));
}

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

// ---- gradients and updates

inline int64_t count_units(at::TensorList tensors, int64_t scope) {
  if (scope == global) return 1;
  if (scope == by_tensor) return int64_t(tensors.size());
  int64_t units = 0;
  for (const at::Tensor& tensor : tensors) units += tensor.dim() > 0 ? tensor.size(0) : 1;
  return units;
}

// The two gradients, and what belongs to their units: entries, coefficients or both.
inline Arguments check_gradients(c10::DeviceType type, at::TensorList task, at::TensorList general, int64_t scope,
                                 const at::Tensor* entries, const at::Tensor* coefficients, bool written = false) {
  TORCH_CHECK_VALUE(scope >= by_tensor && scope <= global, "scope: expected 0 (tensor), 1 (row) or 2 (global), got ",
                    scope, ".");
  const Arguments arguments(task.empty() ? (entries ? "entries" : "coefficients") : "task",
                            task.empty() ? (entries ? *entries : *coefficients) : task[0], type);
  arguments.same("task", task, task, written);
  arguments.same("general", general, task);
  const int64_t units = count_units(task, scope);
  if (entries) arguments.result("entries", *entries, {units, 3});
  if (coefficients) arguments.floating("coefficients", *coefficients, {units, 2});
  return arguments;
}

// What both updates share.
inline Arguments check_update(c10::DeviceType type, at::TensorList params, at::TensorList task, at::TensorList general,
                              const at::Tensor& entries, Arguments::Maybe coefficients, Arguments::Maybe lr_tensor,
                              double lambda, int64_t scope, Arguments::Maybe grad_scale, Arguments::Maybe found_inf) {
  const Arguments arguments =
      check_gradients(type, task, general, scope, &entries, coefficients ? &*coefficients : nullptr);
  arguments.same("params", params, task, true);
  if (lr_tensor && lr_tensor->is_cpu()) {  // read on the host, wherever the parameters are
    Arguments("lr_tensor", *lr_tensor, at::kCPU).number("lr_tensor", lr_tensor);
  } else {
    arguments.number("lr_tensor", lr_tensor);
  }
  arguments.number("grad_scale", grad_scale);
  arguments.number("found_inf", found_inf);
  TORCH_CHECK_VALUE(lambda >= 0 && std::isfinite(lambda), "lambda_: expected a number of at least 0, got ", lambda,
                    ".");
  return arguments;
}

inline void check_adamw_states(const Arguments& arguments, at::TensorList params, at::TensorList exp_avgs,
                               at::TensorList exp_avg_sqs, at::TensorList max_exp_avg_sqs, at::TensorList steps,
                               bool amsgrad) {
  arguments.same("exp_avgs", exp_avgs, params, true);
  arguments.same("exp_avg_sqs", exp_avg_sqs, params, true);
  arguments.same("max_exp_avg_sqs", max_exp_avg_sqs, amsgrad ? params : at::TensorList(), true);
  TORCH_CHECK_VALUE(steps.size() == params.size(), "steps: expected ", params.size(), " tensors, got ", steps.size(),
                    ".");
  for (size_t i = 0; i < steps.size(); ++i) {
    arguments.number("steps", steps[i], int64_t(i));
    TORCH_CHECK_TYPE(steps[i].scalar_type() == at::kFloat || steps[i].scalar_type() == at::kDouble, "steps[", i,
                     "]: expected float32 or float64, got ", steps[i].scalar_type(), ".");
  }
}

inline void check_sgd_states(const Arguments& arguments, at::TensorList params, at::TensorList momentum_buffers,
                             double momentum) {
  const bool needed = momentum != 0 || !momentum_buffers.empty();
  arguments.same("momentum_buffers", momentum_buffers, needed ? params : at::TensorList(), true);
}

// ---- the prompt encoder

inline Arguments check_attention(c10::DeviceType type, const at::Tensor& query, const at::Tensor& key_value,
                                 const at::Tensor& prefix, const at::Tensor& offsets, int64_t heads, bool last) {
  const Arguments arguments("query", query, type);
  arguments.dimensions("query", query, 3);
  arguments.dimensions("key_value", key_value, 3);
  arguments.dimensions("prefix", prefix, 3);
  const at::ScalarType dtype = query.scalar_type();
  const int64_t groups = query.size(0), rows = key_value.size(1), width = query.size(2);
  Arguments::defined("offsets", offsets);
  TORCH_CHECK_VALUE(offsets.dim() == 1 && offsets.numel() > 0, "offsets: expected shape (segments + 1,), got ",
                    offsets.sizes(), ".");
  arguments.integers("offsets", offsets, offsets.sizes());
  TORCH_CHECK_VALUE(heads > 0 && width % heads == 0, "heads: expected a divisor of ", width, ", got ", heads, ".");
  arguments.rows("query", query, dtype, {groups, last ? offsets.numel() - 1 : rows, width});
  arguments.rows("key_value", key_value, dtype, {groups, rows, 2 * width});
  arguments.rows("prefix", prefix, dtype, {groups, prefix.size(1), 2 * width});
  return arguments;
}

inline void check_attention_backward(const Arguments& arguments, const at::Tensor& gradient, const at::Tensor& query,
                                     const at::Tensor& key_value, const at::Tensor& prefix, const at::Tensor& d_query,
                                     const at::Tensor& d_key_value, const at::Tensor& d_prefix) {
  arguments.dimensions("gradient", gradient, 4);
  const auto check_each = [&](const char* name, const at::Tensor& tensor, const at::Tensor& like) {
    arguments.rows(name, tensor, query.scalar_type(), {gradient.size(0), like.size(0), like.size(1), like.size(2)},
                   !tensor.is_same(gradient));
  };
  check_each("gradient", gradient, query);
  check_each("d_query", d_query, query);
  check_each("d_key_value", d_key_value, key_value);
  check_each("d_prefix", d_prefix, prefix);
}

inline void check_add_layer_norm(c10::DeviceType type, const at::Tensor& x, const at::Tensor& branch,
                                 const at::Tensor& weight, const at::Tensor& bias, const at::Tensor& total,
                                 const at::Tensor& normed, const at::Tensor& statistics) {
  const Arguments arguments("x", x, type);
  arguments.dimensions("x", x, 2);
  const at::ScalarType dtype = x.scalar_type();
  arguments.whole("x", x, dtype, x.sizes());
  arguments.whole("branch", branch, dtype, x.sizes());
  arguments.whole("total", total, dtype, x.sizes());
  arguments.whole("normed", normed, dtype, x.sizes());
  arguments.whole("weight", weight, accumulation_dtype(dtype), {x.size(1)});
  arguments.whole("bias", bias, accumulation_dtype(dtype), {x.size(1)});
  arguments.whole("statistics", statistics, accumulation_dtype(dtype), {x.size(0), 2});
}

inline void check_layer_norm_backward(c10::DeviceType type, const at::Tensor& d_total, const at::Tensor& d_normed,
                                      const at::Tensor& total, const at::Tensor& statistics,
                                      const at::Tensor& weight) {
  const Arguments arguments("d_total", d_total, type);
  arguments.dimensions("d_total", d_total, 3);
  const at::ScalarType dtype = d_total.scalar_type();
  const int64_t rows = d_total.size(1), width = d_total.size(2);
  arguments.whole("d_total", d_total, dtype, d_total.sizes());
  arguments.whole("d_normed", d_normed, dtype, d_total.sizes());
  arguments.whole("total", total, dtype, {rows, width});
  arguments.whole("statistics", statistics, accumulation_dtype(dtype), {rows, 2});
  arguments.whole("weight", weight, accumulation_dtype(dtype), {width});
}

inline void check_approximate(int64_t approximate) {
  TORCH_CHECK_VALUE(approximate >= 0 && approximate <= 2, "approximate: expected 0, 1 or 2, got ", approximate, ".");
}

inline void check_gelu(c10::DeviceType type, const at::Tensor& x, int64_t approximate, const at::Tensor& out) {
  const Arguments arguments("x", x, type);
  check_approximate(approximate);
  arguments.whole("x", x, x.scalar_type(), x.sizes());
  arguments.whole("out", out, x.scalar_type(), x.sizes());
}

inline void check_gelu_backward(c10::DeviceType type, const at::Tensor& gradient, const at::Tensor& x,
                                int64_t approximate) {
  const Arguments arguments("x", x, type);
  check_approximate(approximate);
  arguments.whole("x", x, x.scalar_type(), x.sizes());
  Arguments::defined("gradient", gradient);
  TORCH_CHECK_VALUE(gradient.dim() == x.dim() + 1, "gradient: expected ", x.dim() + 1, " dimensions, got ",
                    gradient.dim(), ".");
  c10::SmallVector<int64_t, 5> sizes(x.sizes());
  sizes.insert(sizes.begin(), gradient.size(0));
  arguments.whole("gradient", gradient, x.scalar_type(), sizes);
}

}  // namespace prograd
