// Registration with PyTorch's dispatcher. The schemas are defined in Python (prograd_fast/ops/), where they exist
// without a compiler; here their kernels for a device are put in and taken out, which is how a backend is chosen.
//
// Classic ABI, not libtorch's stable one: the stable ABI begins with PyTorch 2.10 and this package supports older ones;
// the eager fast path in module.cpp unpacks Python tensors, which the stable ABI cannot; and the extension is compiled
// on the user's machine against the PyTorch that is there, so that one binary for many versions has no user.
#include "library.h"

#include <ATen/ATen.h>
#include <torch/library.h>

#include <memory>
#include <tuple>

#include "checks.h"
#include "operators.h"
#include "results.h"

namespace prograd {
namespace {

// The operators that return their results, around those that write them. In C++ too, since allocation from Python takes
// longer than the losses of a small batch.
using Results = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

template <typename Write>
Results results(const at::Tensor& first, const at::Tensor& second, int64_t reduction, const at::Tensor& like,
                const Write& write) {
  LossResults room(first, second, reduction, like);
  write(room.losses, room.cotangents, room.correct);
  return {room.loss(0), room.loss(1), room.cotangents, room.correct};
}

using Maybe = const std::optional<at::Tensor>&;

template <auto* out>
Results dual_loss(const at::Tensor& student, const at::Tensor& teacher, const at::Tensor& labels, Maybe offset,
                  Maybe task_weight, Maybe general_weight, double temperature, bool soft_ce, int64_t reduction) {
  Arguments::defined("student", student);
  check_dual_loss(student.device().type(), student, teacher,
                  {labels, offset, task_weight, general_weight, temperature, reduction});
  return results(student, teacher, reduction, student, [&](auto& losses, auto& cotangents, auto& correct) {
    out(student, teacher, labels, offset, task_weight, general_weight, temperature, soft_ce, reduction, losses,
        cotangents, correct);
  });
}

template <auto* out>
Results linear_dual_loss(const at::Tensor& features, const at::Tensor& student, const at::Tensor& teacher,
                         const at::Tensor& labels, Maybe offset, Maybe task_weight, Maybe general_weight,
                         double scale, double temperature, bool soft_ce, int64_t reduction) {
  Arguments::defined("features", features);
  check_linear_dual_loss(features.device().type(), features, student, teacher,
                         {labels, offset, task_weight, general_weight, temperature, reduction});
  return results(features, student, reduction, student, [&](auto& losses, auto& cotangents, auto& correct) {
    out(features, student, teacher, labels, offset, task_weight, general_weight, scale, temperature, soft_ce,
        reduction, losses, cotangents, correct);
  });
}

// Never destroyed at exit: the dispatcher may be gone by then.
std::unique_ptr<torch::Library>& cpu_library() {
  static auto* library = new std::unique_ptr<torch::Library>;
  return *library;
}

}  // namespace

#define PF_IMPL(library, device)                                                                                \
  library.impl("dual_loss", TORCH_FN(dual_loss<device::dual_loss_out>));                                        \
  library.impl("dual_loss_out", TORCH_FN(device::dual_loss_out));                                               \
  library.impl("linear_dual_loss", TORCH_FN(linear_dual_loss<device::linear_dual_loss_out>));                   \
  library.impl("linear_dual_loss_out", TORCH_FN(device::linear_dual_loss_out));                                 \
  library.impl("gram_out", TORCH_FN(device::gram_out));                                                         \
  library.impl("project_", TORCH_FN(device::project_));                                                         \
  library.impl("project_adamw_", TORCH_FN(device::project_adamw_));                                             \
  library.impl("project_sgd_", TORCH_FN(device::project_sgd_));                                                 \
  library.impl("shared_prefix_attention_out", TORCH_FN(device::shared_prefix_attention_out));                   \
  library.impl("shared_prefix_attention_backward_out", TORCH_FN(device::shared_prefix_attention_backward_out)); \
  library.impl("add_layer_norm_out", TORCH_FN(device::add_layer_norm_out));                                     \
  library.impl("layer_norm_backward_", TORCH_FN(device::layer_norm_backward_));                                 \
  library.impl("gelu_out", TORCH_FN(device::gelu_out));                                                         \
  library.impl("gelu_backward_", TORCH_FN(device::gelu_backward_))

#define PF_IMPL_RELATED_LOSSES(library, device)                                           \
  library.impl("linear_cross_entropy_out", TORCH_FN(device::linear_cross_entropy_out));   \
  library.impl("sampled_cross_entropy_out", TORCH_FN(device::sampled_cross_entropy_out)); \
  library.impl("sampled_log_probs_out", TORCH_FN(device::sampled_log_probs_out));         \
  library.impl("difference_loss_out", TORCH_FN(device::difference_loss_out))

void register_cpu() {
  cpu_library() = std::make_unique<torch::Library>(torch::Library::IMPL, "prograd_fast", c10::DispatchKey::CPU,
                                                   __FILE__, __LINE__);
  PF_IMPL((*cpu_library()), cpu);
  PF_IMPL_RELATED_LOSSES((*cpu_library()), cpu);
}

void unregister_cpu() { cpu_library().reset(); }

#ifdef PF_CUDA
namespace {

std::unique_ptr<torch::Library>& cuda_library() {
  static auto* library = new std::unique_ptr<torch::Library>;
  return *library;
}

}  // namespace

void register_cuda() {
  cuda_library() = std::make_unique<torch::Library>(torch::Library::IMPL, "prograd_fast", c10::DispatchKey::CUDA,
                                                    __FILE__, __LINE__);
  PF_IMPL((*cuda_library()), cuda);
  PF_IMPL_RELATED_LOSSES((*cuda_library()), cuda);
}

void unregister_cuda() { cuda_library().reset(); }
#endif

}  // namespace prograd
