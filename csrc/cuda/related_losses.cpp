// linear_cross_entropy_out, sampled_cross_entropy_out, sampled_log_probs_out and difference_loss_out on CUDA tensors.
#include "../checks.h"
#include "../operators.h"
#include "launch.h"

namespace prograd::cuda {

void linear_cross_entropy_out(const at::Tensor& features, const at::Tensor& classes, const at::Tensor& labels,
                              double scale, at::Tensor& loss, at::Tensor& cotangents) {
  check_linear_cross_entropy(at::kCUDA, features, classes, labels, loss, cotangents);
  const Launch launch(features);
  const at::ScalarType dtype = common_dtype(features, classes, cotangents);
  const at::Tensor x = launch.operand(features, dtype, "features"), w = launch.operand(classes, dtype, "classes");
  const at::Tensor y = launch.operand(labels, at::kLong, "labels");
  const at::Tensor losses = at::empty({2}, x.options().dtype(accumulation_dtype(dtype)));
  const at::Tensor correct = at::empty({}, y.options());
  const Written written(cotangents, dtype);
  const LossOptions options{y.const_data_ptr<int64_t>(), nullptr, nullptr, nullptr, 1, false, Reduction::mean,
                            losses.mutable_data_ptr(), written.data(), correct.mutable_data_ptr<int64_t>()};
  const at::Tensor workspace = launch.workspace(linear_dual_loss_workspace(storage_of(dtype), x.size(0), w.size(0)));
  linear_dual_loss(storage_of(dtype), x.const_data_ptr(), w.const_data_ptr(), nullptr, x.size(0), w.size(0), x.size(1),
                   scale, options, workspace.mutable_data_ptr(), launch.stream());
  written.write_back();
  loss.copy_(losses[0]);
}

void sampled_cross_entropy_out(const at::Tensor& logits, const at::Tensor& labels, int64_t reduction,
                               at::Tensor& losses, at::Tensor& cotangents) {
  check_sampled_cross_entropy(at::kCUDA, logits, labels, reduction, losses, cotangents);
  const Launch launch(logits);
  const at::ScalarType dtype = common_dtype(logits, cotangents);
  const at::Tensor z = launch.operand(logits, dtype, "logits"), y = launch.operand(labels, at::kLong, "labels");
  const Written written_losses(losses, accumulation_dtype(dtype)), written(cotangents, dtype);
  const at::Tensor workspace = launch.workspace(samples_workspace(storage_of(dtype), z.size(0), z.size(1)));
  sampled_cross_entropy(storage_of(dtype), z.const_data_ptr(), y.const_data_ptr<int64_t>(), z.size(0), z.size(1),
                        z.size(2), static_cast<Reduction>(reduction), written_losses.data(), written.data(),
                        workspace.mutable_data_ptr(), launch.stream());
  written_losses.write_back();
  written.write_back();
}

void sampled_log_probs_out(const at::Tensor& logits, at::Tensor& log_probs) {
  check_sampled_log_probs(at::kCUDA, logits, log_probs);
  const Launch launch(logits);
  const at::ScalarType dtype = logits.scalar_type();
  const at::Tensor z = launch.operand(logits, dtype, "logits");
  const Written written(log_probs, accumulation_dtype(dtype));
  const at::Tensor workspace = launch.workspace(samples_workspace(storage_of(dtype), z.size(0), z.size(1)));
  sampled_log_probs(storage_of(dtype), z.const_data_ptr(), z.size(0), z.size(1), z.size(2), written.data(),
                    workspace.mutable_data_ptr(), launch.stream());
  written.write_back();
}

void difference_loss_out(const at::Tensor& prediction, const at::Tensor& target, bool soft_wing, double omega1,
                         double omega2, double epsilon, double factor, at::Tensor& loss, at::Tensor& cotangents) {
  check_difference_loss(at::kCUDA, prediction, target, soft_wing, omega1, omega2, epsilon, loss, cotangents);
  const Launch launch(prediction);
  const at::ScalarType dtype = common_dtype(prediction, target, cotangents);
  const at::Tensor x = launch.operand(prediction, dtype, "prediction"), t = launch.operand(target, dtype, "target");
  const Written written_loss(loss, accumulation_dtype(dtype)), written(cotangents, dtype);
  const at::Tensor workspace = launch.workspace(difference_loss_workspace(storage_of(dtype), x.numel()));
  difference_loss(storage_of(dtype), x.const_data_ptr(), t.const_data_ptr(), x.numel(),
                  {soft_wing, omega1, omega2, epsilon, factor, written_loss.data(), written.data()},
                  workspace.mutable_data_ptr(), launch.stream());
  written_loss.write_back();
  written.write_back();
}

}  // namespace prograd::cuda
