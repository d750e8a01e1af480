// Classic ABI, not libtorch's stable one: the stable ABI begins with PyTorch 2.10 and this package supports older ones;
// the eager fast path in bindings/module.cpp unpacks Python tensors, which the stable ABI cannot; and the extension is
// compiled on the user's machine against the PyTorch that is there, so that one binary for many versions has no user.
#include "library.h"

#include <map>
#include <memory>
#include <vector>

namespace prograd {
namespace {

struct Device {
  std::vector<Registration::Implement> families;
  std::unique_ptr<torch::Library> library;  // while they are registered
};

// Never destroyed at exit: the dispatcher may be gone by then.
Device& device_of(c10::DispatchKey key) {
  static auto* devices = new std::map<c10::DispatchKey, Device>;
  return (*devices)[key];
}

}  // namespace

Registration::Registration(c10::DispatchKey device, Implement implement) {
  device_of(device).families.push_back(implement);
}

void register_operators(c10::DispatchKey key) {
  Device& device = device_of(key);
  device.library = std::make_unique<torch::Library>(torch::Library::IMPL, "prograd_fast", key, __FILE__, __LINE__);
  for (const Registration::Implement implement : device.families) implement(*device.library);
}

void unregister_operators(c10::DispatchKey key) { device_of(key).library.reset(); }

}  // namespace prograd
