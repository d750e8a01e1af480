// sampled_cross_entropy_out and sampled_log_probs_out on CUDA tensors.
#include "samples.h"

#include "../common/library.h"
#include "../operators/samples.h"
#include "launch.h"

namespace prograd::cuda {
namespace {

void sampled_cross_entropy_out(const at::Tensor& logits, const at::Tensor& labels, int64_t reduction,
                               at::Tensor& losses, at::Tensor& cotangents) {
  check_sampled_cross_entropy(at::kCUDA, logits, labels, reduction, losses, cotangents);
  const Launch launch(logits);
  const at::ScalarType dtype = logits.scalar_type();
  const at::Tensor z = launch.operand(logits, dtype, "logits"), y = launch.operand(labels, at::kLong, "labels");
  const Written written_losses(losses, accumulation_dtype(dtype)), written(cotangents, accumulation_dtype(dtype));
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

const Registration registration(c10::DispatchKey::CUDA, [](torch::Library& library) {
  library.impl("sampled_cross_entropy_out", TORCH_FN(sampled_cross_entropy_out));
  library.impl("sampled_log_probs_out", TORCH_FN(sampled_log_probs_out));
});

}  // namespace
}  // namespace prograd::cuda
