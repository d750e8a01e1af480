// Runs CUDA C++ kernels on the CPU, compiled by a plain C++17 compiler, to find wrong results, missing barriers and
// divergent collectives where there is no GPU.
//
// Every CUDA thread is a fiber with a stack of its own. One scheduler runs all fibers of all running blocks and
// switches where the hardware is free to: at barriers, warp collectives, atomics and fences. Its choices come from an
// order and a seed, so that a failure can be repeated:
//   random   any thread that can run
//   greedy   one warp as far as it can, then another (finds barriers that a fair schedule makes unnecessary)
//   reverse  the last thread of the last block first
// Shared memory is private to a block and filled with NaN patterns before it starts; bytes around it are checked when
// it ends. A collective that cannot complete ends the launch with a message that says who waits where.
//
// Weak memory ordering is not shown, but an atomic without its two fences is refused. Not shown: bank conflicts, the
// accuracy of device intrinsics, speed.
#pragma once

#include "half.h"
#include "mma.h"
#include "scheduler.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)

#define threadIdx (simt::current->index)
#define blockIdx (simt::current->block->index)
#define blockDim (simt::launch_now->block)
#define gridDim (simt::launch_now->grid)

inline void __syncthreads() { simt::wait_at(simt::Wait::block); }
inline void __syncwarp(unsigned mask = simt::kFullMask) { simt::meet_warp(simt::Wait::syncwarp, mask, 0); }
inline void __threadfence() {
  simt::current->fenced = true;
  simt::current->unfenced = false;
  simt::yield();
}
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline unsigned __ballot_sync(unsigned mask, bool predicate) { return simt::ballot(mask, predicate); }
inline bool __any_sync(unsigned mask, bool predicate) { return simt::ballot(mask, predicate) != 0; }
inline bool __all_sync(unsigned mask, bool predicate) { return simt::ballot(mask, predicate) == mask; }

template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = simt::kWarp) {
  const int lane = simt::current->lane;
  return simt::exchange(mask, value, (lane & ~(width - 1)) + (source & (width - 1)), true);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = simt::kWarp) {
  const int lane = simt::current->lane, source = lane ^ lane_mask;
  return simt::exchange(mask, value, source, source < (lane & ~(width - 1)) + width);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = simt::kWarp) {
  const int lane = simt::current->lane, source = lane + int(delta);
  return simt::exchange(mask, value, source, source < (lane & ~(width - 1)) + width);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = simt::kWarp) {
  const int lane = simt::current->lane, source = lane - int(delta);
  return simt::exchange(mask, value, source, source >= (lane & ~(width - 1)));
}

struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
template <typename T>
void __stcg(T* address, T value) {
  if (reinterpret_cast<uintptr_t>(address) % alignof(T)) simt::fail("misaligned address");
  *address = value;
}

// One OS thread runs everything, so the operation itself is whole; what may come before and after it is not.
// Kernels take tickets with atomics and nothing else, so one without a fence before and behind it is refused.
template <typename T>
T atomicAdd(T* address, T value) {
  simt::check_fenced_before();
  simt::current->unfenced = true;
  simt::yield();
  const T before = *address;
  *address = before + value;
  simt::yield();
  return before;
}

namespace cooperative_groups {
struct grid_group {
  void sync() const { simt::wait_at(simt::Wait::grid); }
};
inline grid_group this_grid() { return {}; }
}  // namespace cooperative_groups
