// The launchers of csrc/cuda on the CPU, for Python's ctypes. X.cpp, which includes this after csrc/cuda/X.h, has a
// function for each launcher of a family. The function returns what went wrong, or null.
#pragma once

#include "simt.h"

#define PF_EXPORT extern "C" __attribute__((visibility("default")))

using namespace prograd;
using namespace prograd::cuda;

namespace {

template <typename Run>
const char* caught(Run run) {
  static std::string message;
  try {
    run();
  } catch (const std::exception& error) {
    message = error.what();
    return message.c_str();
  }
  return nullptr;
}

// Filled with what no kernel may rely on, and with bytes behind it that no kernel may change.
class Workspace {
 public:
  explicit Workspace(size_t size) { simt::poison(bytes_, size); }
  void* data() { return bytes_.data() + 16; }
  void check() const {
    if (!simt::intact(bytes_)) throw simt::Fault("write outside of the workspace");
  }

 private:
  std::vector<unsigned char> bytes_;
};

template <typename Run>
const char* with_workspace(size_t size, Run run) {
  return caught([&] {
    Workspace workspace(size);
    run(workspace.data());
    workspace.check();
  });
}

}  // namespace

PF_EXPORT void simt_schedule(int order, uint64_t seed, unsigned resident_blocks) {
  simt::schedule = {static_cast<simt::Order>(order), seed, resident_blocks};
}

// How many kernels the last operator launched.
PF_EXPORT unsigned simt_launches() { return std::exchange(simt::launches, 0); }
