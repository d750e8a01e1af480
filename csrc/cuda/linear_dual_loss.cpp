// linear_dual_loss, linear_dual_loss_out and linear_cross_entropy_out on CUDA tensors.
#include "linear_dual_loss.h"

#include "../common/library.h"
#include "../operators/linear_dual_loss.h"
#include "dual_loss_rows.h"
#include "launch.h"

namespace prograd::cuda {
namespace {

void launch_linear_dual_loss(const LinearDualLossArguments& all, at::Tensor& losses, at::Tensor& cotangents,
                             at::Tensor& correct) {
  const Launch launch(all.features);
  const at::ScalarType dtype = common_dtype(all.features, all.student_classes, all.teacher_classes);
  const Storage storage = storage_of(dtype);
  const Rows rows(launch, all.row_options(), dtype, losses, cotangents, correct);
  const at::Tensor x = launch.operand(all.features, dtype, "features");
  const at::Tensor student = launch.operand(all.student_classes, dtype, "student_classes");
  const at::Tensor teacher = launch.operand(all.teacher_classes, dtype, "teacher_classes");
  const at::Tensor workspace = launch.workspace(linear_dual_loss_workspace(storage, x.size(0), student.size(0)));
  linear_dual_loss(storage, x.const_data_ptr(), student.const_data_ptr(), teacher.const_data_ptr(), x.size(0),
                   student.size(0), x.size(1), all.scale, rows.options(), workspace.mutable_data_ptr(),
                   launch.stream());
  rows.write_back();
}

void linear_cross_entropy_out(const at::Tensor& features, const at::Tensor& classes, const at::Tensor& labels,
                              double scale, at::Tensor& loss, at::Tensor& cotangents) {
  check_linear_cross_entropy(at::kCUDA, features, classes, labels, loss, cotangents);
  const Launch launch(features);
  const at::ScalarType dtype = common_dtype(features, classes);
  const at::Tensor x = launch.operand(features, dtype, "features"), w = launch.operand(classes, dtype, "classes");
  const at::Tensor y = launch.operand(labels, at::kLong, "labels");
  const at::Tensor losses = at::empty({2}, x.options().dtype(accumulation_dtype(dtype)));
  const at::Tensor correct = at::empty({}, y.options());
  const Written written(cotangents, accumulation_dtype(dtype));
  const LossOptions options{y.const_data_ptr<int64_t>(),
                            nullptr,
                            nullptr,
                            nullptr,
                            1,
                            false,
                            Reduction::mean,
                            losses.mutable_data_ptr(),
                            written.data(),
                            correct.mutable_data_ptr<int64_t>()};
  const at::Tensor workspace = launch.workspace(linear_dual_loss_workspace(storage_of(dtype), x.size(0), w.size(0)));
  linear_dual_loss(storage_of(dtype), x.const_data_ptr(), w.const_data_ptr(), nullptr, x.size(0), w.size(0), x.size(1),
                   scale, options, workspace.mutable_data_ptr(), launch.stream());
  written.write_back();
  loss.copy_(losses[0]);
}

const Registration registration(c10::DispatchKey::CUDA, [](torch::Library& library) {
  using Operator = LossOperator<LinearDualLossArguments>;
  library.impl("linear_dual_loss", TORCH_FN(Operator::returned<launch_linear_dual_loss>));
  library.impl("linear_dual_loss_out", TORCH_FN((Operator::out<launch_linear_dual_loss, at::kCUDA>)));
  library.impl("linear_cross_entropy_out", TORCH_FN(linear_cross_entropy_out));
});

}  // namespace
}  // namespace prograd::cuda
