// normalised_focal_loss_out on CUDA tensors.
#include "normalised_focal.h"

#include "../common/library.h"
#include "../operators/normalised_focal.h"
#include "launch.h"

namespace prograd::cuda {
namespace {

void normalised_focal_loss_out(const at::Tensor& logits, const at::Tensor& labels, double alpha, double gamma,
                               double max_mult, double eps, at::Tensor& losses, at::Tensor& cotangents) {
  check_normalised_focal_loss(at::kCUDA, logits, labels, gamma, eps, losses, cotangents);
  const Launch launch(logits);
  const at::ScalarType dtype = logits.scalar_type();
  const at::Tensor z = launch.operand(logits, dtype, "logits"), y = launch.operand(labels, at::kLong, "labels");
  const Written written_losses(losses, accumulation_dtype(dtype)), written(cotangents, accumulation_dtype(dtype));
  const Masks masks{z.const_data_ptr(),
                    y.const_data_ptr<int64_t>(),
                    z.size(0),
                    z.size(1),
                    alpha,
                    gamma,
                    max_mult,
                    eps,
                    written_losses.data(),
                    written.data()};
  const at::Tensor workspace = launch.workspace(normalised_focal_workspace(storage_of(dtype), masks));
  normalised_focal_loss(storage_of(dtype), masks, workspace.mutable_data_ptr(), launch.stream());
  written_losses.write_back();
  written.write_back();
}

const Registration registration(c10::DispatchKey::CUDA, [](torch::Library& library) {
  library.impl("normalised_focal_loss_out", TORCH_FN(normalised_focal_loss_out));
});

}  // namespace
}  // namespace prograd::cuda
