// Classic ABI, not libtorch's stable one: the stable ABI begins with PyTorch 2.10 and this package supports older ones;
// the eager fast path in bindings/module.cpp unpacks Python tensors, which the stable ABI cannot; and the extension is
// compiled on the user's machine against the PyTorch that is there, so that one binary for many versions has no user.
#include "library.h"

#include <map>
#include <memory>

namespace prograd {
namespace {

struct Device {
  std::map<std::string, Registration::Implement> families;
  std::unique_ptr<torch::Library> library;  // while they are registered
};

// Never destroyed at exit: the dispatcher may be gone by then.
Device& device_of(c10::DispatchKey key) {
  static auto* devices = new std::map<c10::DispatchKey, Device>;
  return (*devices)[key];
}

std::string stem_of(const std::string& file) {
  const std::string name = file.substr(file.find_last_of("/\\") + 1);
  return name.substr(0, name.find('.'));
}

}  // namespace

Registration::Registration(c10::DispatchKey device, Implement implement, const char* file) {
  device_of(device).families.emplace(stem_of(file), implement);
}

std::vector<std::string> families_of(c10::DispatchKey key) {
  std::vector<std::string> names;
  for (const auto& family : device_of(key).families) names.push_back(family.first);
  return names;
}

void register_operators(c10::DispatchKey key, const std::vector<std::string>& families) {
  Device& device = device_of(key);
  for (const std::string& name : families) {
    TORCH_CHECK_VALUE(device.families.count(name), "families: there are no kernels of ", name, ".");
  }
  device.library = std::make_unique<torch::Library>(torch::Library::IMPL, "prograd_fast", key, __FILE__, __LINE__);
  for (const std::string& name : families) device.families.at(name)(*device.library);
}

void unregister_operators(c10::DispatchKey key) { device_of(key).library.reset(); }

}  // namespace prograd
