// Kernels in PyTorch's dispatcher, by type of device. The schemas are defined in Python (prograd_fast/ops/), where they
// exist without a compiler; here the kernels for a device are put in and taken out, which is how a backend is chosen.
#pragma once

#include <torch/library.h>

#include <string>
#include <vector>

namespace prograd {

// The operators of one family on one type of device: a static object beside their kernels, of which
// register_operators() hears when the module is loaded.
class Registration {
 public:
  using Implement = void (*)(torch::Library&);
  // file: where the object is; its stem is the name of the family, as in every other room
  Registration(c10::DispatchKey device, Implement implement, const char* file = __builtin_FILE());
};

// The names of the families that have kernels for a device.
std::vector<std::string> families_of(c10::DispatchKey device);

// Put the kernels of these families for a device behind torch.ops.prograd_fast.*, and take all of them out again.
void register_operators(c10::DispatchKey device, const std::vector<std::string>& families);
void unregister_operators(c10::DispatchKey device);

}  // namespace prograd
