// dual_loss and dual_loss_out on CUDA tensors.
#include "dual_loss.h"

#include "../common/library.h"
#include "../operators/dual_loss.h"
#include "launch.h"

namespace prograd::cuda {
namespace {

void launch_dual_loss(const DualLossArguments& all, const at::Tensor& task, const at::Tensor& general,
                      const at::Tensor& cotangents, const at::Tensor& correct) {
  const Launch launch(all.student);
  const at::ScalarType dtype = common_dtype(all.student, all.teacher), arithmetic = accumulation_dtype(dtype);
  const Storage storage = storage_of(dtype);
  const at::Tensor z = launch.operand(all.student, dtype, "student"), t = launch.operand(all.teacher, dtype, "teacher");
  const at::Tensor labels = launch.operand(all.labels, at::kLong, "labels");
  const at::Tensor offset = launch.operand(all.teacher_offset, arithmetic, "teacher_offset");
  const at::Tensor task_weight = launch.operand(all.task_weight, arithmetic, "task_weight");
  const at::Tensor general_weight = launch.operand(all.general_weight, arithmetic, "general_weight");
  const Written of_task(task, arithmetic), of_general(general, arithmetic), by_logit(cotangents, arithmetic),
      count(correct, at::kLong);
  const LossOptions options{labels.const_data_ptr<int64_t>(),
                            pointer_or_null(offset),
                            pointer_or_null(task_weight),
                            pointer_or_null(general_weight),
                            all.temperature,
                            all.soft_ce,
                            static_cast<Reduction>(all.reduction),
                            of_task.data(),
                            of_general.data(),
                            by_logit.data(),
                            reinterpret_cast<int64_t*>(count.data())};
  const at::Tensor workspace = launch.workspace(dual_loss_workspace(storage, z.size(0), z.size(1)));
  dual_loss(storage, z.const_data_ptr(), t.const_data_ptr(), z.size(0), z.size(1), options,
            workspace.mutable_data_ptr(), launch.stream());
  for (const Written* written : {&of_task, &of_general, &by_logit, &count}) written->write_back();
}

const Registration registration(c10::DispatchKey::CUDA, [](torch::Library& library) {
  using Operator = LossOperator<DualLossArguments>;
  library.impl("dual_loss", TORCH_FN((Operator::returned_of_two<launch_dual_loss, at::kCUDA>)));
  library.impl("dual_loss_out", TORCH_FN((Operator::out_of_two<launch_dual_loss, at::kCUDA>)));
});

}  // namespace
}  // namespace prograd::cuda
