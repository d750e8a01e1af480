// dual_loss and dual_loss_out on CUDA tensors.
#include "dual_loss.h"

#include "../common/library.h"
#include "../operators/dual_loss.h"
#include "dual_loss_rows.h"
#include "launch.h"

namespace prograd::cuda {
namespace {

void launch_dual_loss(const DualLossArguments& all, at::Tensor& losses, at::Tensor& cotangents, at::Tensor& correct) {
  const Launch launch(all.student);
  const at::ScalarType dtype = common_dtype(all.student, all.teacher);
  const Storage storage = storage_of(dtype);
  const Rows rows(launch, all.row_options(), dtype, losses, cotangents, correct);
  const at::Tensor z = launch.operand(all.student, dtype, "student"), t = launch.operand(all.teacher, dtype, "teacher");
  const at::Tensor workspace = launch.workspace(dual_loss_workspace(storage, z.size(0)));
  dual_loss(storage, z.const_data_ptr(), t.const_data_ptr(), z.size(0), z.size(1), rows.options(),
            workspace.mutable_data_ptr(), launch.stream());
  rows.write_back();
}

const Registration registration(c10::DispatchKey::CUDA, [](torch::Library& library) {
  using Operator = LossOperator<DualLossArguments>;
  library.impl("dual_loss", TORCH_FN(Operator::returned<launch_dual_loss>));
  library.impl("dual_loss_out", TORCH_FN((Operator::out<launch_dual_loss, at::kCUDA>)));
});

}  // namespace
}  // namespace prograd::cuda
