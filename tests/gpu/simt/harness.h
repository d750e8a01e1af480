// The launchers of csrc/cuda on the CPU, for Python's ctypes. X.cpp, which includes this after csrc/cuda/X.h, has a
// function for each launcher of a family. The function returns what went wrong, or null.
#pragma once

#include <csetjmp>
#include <csignal>

#include "simt.h"

#define PF_EXPORT extern "C" __attribute__((visibility("default")))

using namespace prograd;
using namespace prograd::cuda;

namespace {

// While one lives, an access to a page that nobody may touch ends the launch with a message. The address in it is for
// Python, which knows the tensors.
class PageFaults {
 public:
  PageFaults() {
    struct sigaction action = {};
    action.sa_sigaction = found;
    action.sa_flags = SA_SIGINFO | SA_NODEFER;  // the handler does not return
    for (int i = 0; i < 2; ++i) sigaction(kSignals[i], &action, &before_[i]);
  }
  ~PageFaults() {
    for (int i = 0; i < 2; ++i) sigaction(kSignals[i], &before_[i], nullptr);
  }

  // Where the host goes on after a fault of its own, and what it says then.
  static inline sigjmp_buf host;
  static inline std::string message;

 private:
  static constexpr int kSignals[] = {SIGSEGV, SIGBUS};
  struct sigaction before_[2];

  static void found(int, siginfo_t* info, void* context) {
    message = simt::current ? "a kernel" : "the host";
    if (info->si_code == SI_KERNEL) {
      message += " read or wrote 16 bytes at a misaligned address";
    } else {
      message += kind(static_cast<ucontext_t*>(context)) + std::string(" at address ") +
                 std::to_string(reinterpret_cast<uintptr_t>(info->si_addr));
    }
    if (simt::current) simt::fail(message);  // to the scheduler
    siglongjmp(host, 1);
  }

  static const char* kind([[maybe_unused]] const ucontext_t* context) {
#ifdef __x86_64__
    return context->uc_mcontext.gregs[REG_ERR] & 2 ? " wrote" : " read";
#else
    return " read or wrote";
#endif
  }
};

template <typename Run>
const char* caught(Run run) {
  static std::string message;
  const PageFaults faults;
  if (sigsetjmp(PageFaults::host, 1)) return PageFaults::message.c_str();
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

// What follows runs no more than so many blocks at the end of a grid.
PF_EXPORT void simt_last_blocks(unsigned blocks) { simt::schedule.last_blocks = blocks; }

// Blocks of what follows may have so much shared memory.
PF_EXPORT void simt_shared_limit(size_t bytes) { simt::schedule.shared_limit = bytes; }

// How many kernels the last operator launched, with what clears memory.
PF_EXPORT unsigned simt_launches() { return std::exchange(simt::launches, 0); }
