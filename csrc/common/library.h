// Kernels in PyTorch's dispatcher, by type of device. The schemas are defined in Python (prograd_fast/ops/), where they
// exist without a compiler; here the kernels for a device are put in and taken out, which is how a backend is chosen.
#pragma once

#include <torch/library.h>

namespace prograd {

// The operators of one family on one type of device: a static object beside their kernels, of which
// register_operators() hears when the module is loaded.
class Registration {
 public:
  using Implement = void (*)(torch::Library&);
  Registration(c10::DispatchKey device, Implement implement);
};

// Put the kernels for a device behind torch.ops.prograd_fast.*, or take them out again.
void register_operators(c10::DispatchKey device);
void unregister_operators(c10::DispatchKey device);

}  // namespace prograd
