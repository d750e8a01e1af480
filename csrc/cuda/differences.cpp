// difference_loss_out and structure_loss_out on CUDA tensors.
#include "differences.h"

#include "../common/library.h"
#include "../operators/differences.h"
#include "launch.h"
#include "segments.h"

namespace prograd::cuda {
namespace {

void difference_loss_out(const at::Tensor& prediction, const at::Tensor& target, bool soft_wing, double omega1,
                         double omega2, double epsilon, double factor, at::Tensor& loss, at::Tensor& cotangents) {
  check_difference_loss(at::kCUDA, prediction, target, soft_wing, omega1, omega2, epsilon, loss, cotangents);
  const Launch launch(prediction);
  const at::ScalarType dtype = common_dtype(prediction, target);
  const at::Tensor x = launch.operand(prediction, dtype, "prediction"), t = launch.operand(target, dtype, "target");
  const Written written_loss(loss, accumulation_dtype(dtype)), written(cotangents, accumulation_dtype(dtype));
  const at::Tensor workspace = launch.workspace(difference_loss_workspace(storage_of(dtype), x.numel()));
  difference_loss(storage_of(dtype), x.const_data_ptr(), t.const_data_ptr(), x.numel(),
                  {soft_wing, omega1, omega2, epsilon, factor, written_loss.data(), written.data()},
                  workspace.mutable_data_ptr(), launch.stream());
  written_loss.write_back();
  written.write_back();
}

void structure_loss_out(const at::Tensor& prediction, const at::Tensor& target, const at::Tensor& rows,
                        const at::Tensor& columns, double omega1, double omega2, double epsilon, double factor,
                        at::Tensor& losses, at::Tensor& cotangents) {
  check_structure_loss(at::kCUDA, prediction, target, rows, columns, omega1, omega2, epsilon, losses, cotangents);
  const Launch launch(prediction);
  const at::ScalarType dtype = common_dtype(prediction, target);
  const at::Tensor x = launch.operand(prediction, dtype, "prediction"), t = launch.operand(target, dtype, "target");
  const at::Tensor row = launch.operand(rows, at::kLong, "rows"),
                   column = launch.operand(columns, at::kLong, "columns");
  const SortedEnds by_row(row, x.size(1)), by_column(column, x.size(1));
  const Written written_losses(losses, accumulation_dtype(dtype)), written(cotangents, accumulation_dtype(dtype));
  const Structure structure{x.const_data_ptr(),
                            t.const_data_ptr(),
                            row.const_data_ptr<int64_t>(),
                            column.const_data_ptr<int64_t>(),
                            x.size(0),
                            x.size(1),
                            x.size(2),
                            by_row.segments(),
                            by_column.segments(),
                            omega1,
                            omega2,
                            epsilon,
                            factor,
                            written_losses.data(),
                            written.data()};
  const at::Tensor workspace = launch.workspace(structure_loss_workspace(storage_of(dtype), structure));
  structure_loss(storage_of(dtype), structure, workspace.mutable_data_ptr(), launch.stream());
  written_losses.write_back();
  written.write_back();
}

const Registration registration(c10::DispatchKey::CUDA, [](torch::Library& library) {
  library.impl("difference_loss_out", TORCH_FN(difference_loss_out));
  library.impl("structure_loss_out", TORCH_FN(structure_loss_out));
});

}  // namespace
}  // namespace prograd::cuda
