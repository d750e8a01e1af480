// The operators that write into their arguments, once for each type of device. Their schemas, with what the arguments
// mean, are in prograd_fast/ops/.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#define PF_DECLARE_OPERATORS                                                                                           \
  void dual_loss_out(const at::Tensor& student, const at::Tensor& teacher, const at::Tensor& labels,                   \
                     const std::optional<at::Tensor>& teacher_offset, const std::optional<at::Tensor>& task_weight,    \
                     const std::optional<at::Tensor>& general_weight, double temperature, bool soft_ce,                \
                     int64_t reduction, at::Tensor& losses, at::Tensor& cotangents, at::Tensor& correct);              \
  void linear_dual_loss_out(                                                                                           \
      const at::Tensor& features, const at::Tensor& student_classes, const at::Tensor& teacher_classes,                \
      const at::Tensor& labels, const std::optional<at::Tensor>& teacher_offset,                                       \
      const std::optional<at::Tensor>& task_weight, const std::optional<at::Tensor>& general_weight, double scale,     \
      double temperature, bool soft_ce, int64_t reduction, at::Tensor& losses, at::Tensor& cotangents,                 \
      at::Tensor& correct);                                                                                            \
  void gram_out(at::TensorList task, at::TensorList general, int64_t scope, at::Tensor& entries);                      \
  void project_(at::TensorList task, at::TensorList general, const at::Tensor& coefficients, int64_t scope);           \
  void project_adamw_(at::TensorList params, at::TensorList task, at::TensorList general, at::TensorList exp_avgs,     \
                      at::TensorList exp_avg_sqs, at::TensorList max_exp_avg_sqs, at::TensorList steps,                \
                      at::Tensor& entries, const std::optional<at::Tensor>& coefficients,                              \
                      const std::optional<at::Tensor>& lr_tensor, double lr, double beta1, double beta2, double eps,   \
                      double weight_decay, double lambda, int64_t scope, bool amsgrad, bool maximize,                  \
                      const std::optional<at::Tensor>& grad_scale, const std::optional<at::Tensor>& found_inf);        \
  void project_sgd_(at::TensorList params, at::TensorList task, at::TensorList general,                                \
                    at::TensorList momentum_buffers, at::Tensor& entries,                                              \
                    const std::optional<at::Tensor>& coefficients, const std::optional<at::Tensor>& lr_tensor,         \
                    double lr, double momentum, double dampening, double weight_decay, double lambda, int64_t scope,   \
                    bool nesterov, bool maximize, bool first, const std::optional<at::Tensor>& grad_scale,             \
                    const std::optional<at::Tensor>& found_inf);                                                       \
  void shared_prefix_attention_out(const at::Tensor& query, const at::Tensor& key_value, const at::Tensor& prefix,     \
                                   const at::Tensor& offsets, int64_t heads, double scale, bool last,                  \
                                   at::Tensor& out);                                                                   \
  void shared_prefix_attention_backward_out(                                                                           \
      const at::Tensor& gradient, const at::Tensor& query, const at::Tensor& key_value, const at::Tensor& prefix,      \
      const at::Tensor& offsets, int64_t heads, double scale, bool last, at::Tensor& d_query,                          \
      at::Tensor& d_key_value, at::Tensor& d_prefix);                                                                  \
  void add_layer_norm_out(const at::Tensor& x, const at::Tensor& branch, const at::Tensor& weight,                     \
                          const at::Tensor& bias, double eps, at::Tensor& total, at::Tensor& normed,                   \
                          at::Tensor& statistics);                                                                     \
  void layer_norm_backward_(at::Tensor& d_total, const at::Tensor& d_normed, const at::Tensor& total,                  \
                            const at::Tensor& statistics, const at::Tensor& weight);                                   \
  void gelu_out(const at::Tensor& x, int64_t approximate, at::Tensor& out);                                            \
  void gelu_backward_(at::Tensor& gradient, const at::Tensor& x, int64_t approximate);

#define PF_DECLARE_RELATED_LOSSES                                                                                      \
  void linear_cross_entropy_out(const at::Tensor& features, const at::Tensor& classes, const at::Tensor& labels,       \
                                double scale, at::Tensor& loss, at::Tensor& cotangents);                               \
  void sampled_cross_entropy_out(const at::Tensor& logits, const at::Tensor& labels, int64_t reduction,                \
                                 at::Tensor& losses, at::Tensor& cotangents);                                          \
  void sampled_log_probs_out(const at::Tensor& logits, at::Tensor& log_probs);                                         \
  void difference_loss_out(const at::Tensor& prediction, const at::Tensor& target, bool soft_wing, double omega1,      \
                           double omega2, double epsilon, double factor, at::Tensor& loss, at::Tensor& cotangents);

namespace prograd {

enum Scope : int64_t { by_tensor, by_row, global };
enum Reduction : int64_t { none, mean, sum };

namespace cpu {
PF_DECLARE_OPERATORS
PF_DECLARE_RELATED_LOSSES
}

#ifdef PF_CUDA
namespace cuda {
PF_DECLARE_OPERATORS
PF_DECLARE_RELATED_LOSSES
}
#endif

}  // namespace prograd
