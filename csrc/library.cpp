// Registration with PyTorch's dispatcher. The schemas are defined in Python (prograd_fast/ops/), where they exist
// without a compiler; here their kernels for a device are put in and taken out, which is how a backend is chosen.
//
// Classic ABI, not libtorch's stable one: the stable ABI begins with PyTorch 2.10 and this package supports older ones;
// the eager fast path in module.cpp unpacks Python tensors, which the stable ABI cannot; and the extension is compiled
// on the user's machine against the PyTorch that is there, so that one binary for many versions has no user.
#include "library.h"

#include <torch/library.h>

#include <memory>

#include "operators.h"

namespace prograd {
namespace {

// Never destroyed at exit: the dispatcher may be gone by then.
std::unique_ptr<torch::Library>& cpu_library() {
  static auto* library = new std::unique_ptr<torch::Library>;
  return *library;
}

}  // namespace

#define PF_IMPL(library, device)                                             \
  library.impl("dual_loss_out", TORCH_FN(device::dual_loss_out));            \
  library.impl("linear_dual_loss_out", TORCH_FN(device::linear_dual_loss_out)); \
  library.impl("gram_out", TORCH_FN(device::gram_out));                      \
  library.impl("project_", TORCH_FN(device::project_));                      \
  library.impl("project_adamw_", TORCH_FN(device::project_adamw_));          \
  library.impl("project_sgd_", TORCH_FN(device::project_sgd_))

void register_cpu() {
  cpu_library() = std::make_unique<torch::Library>(torch::Library::IMPL, "prograd_fast", c10::DispatchKey::CPU,
                                                   __FILE__, __LINE__);
  PF_IMPL((*cpu_library()), cpu);
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
}

void unregister_cuda() { cuda_library().reset(); }
#endif

}  // namespace prograd
