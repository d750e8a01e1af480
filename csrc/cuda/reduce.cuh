// Sums over a block in a fixed order, and the block that finishes last.
#pragma once

#include "platform.cuh"

namespace prograd::cuda {

constexpr int kMaxWarps = 32;

// Puts merge(...) of a warp's values into the value of each of its threads.
template <typename T, typename Shuffle, typename Merge>
__device__ __forceinline__ T warp_reduce(T value, Shuffle shuffle, Merge merge) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) value = merge(value, shuffle(value, offset));
  return value;
}

// The sum of all lanes of a warp, in each of them.
template <typename A>
__device__ __forceinline__ A warp_sum(A value) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) value += __shfl_xor_sync(kFullMask, value, offset);
  return value;
}

// Puts merge(...) of all threads' values into the value of every thread: a tree inside each warp, then one over the
// warps. merge(a, b) must be symmetric but for rounding, and merge(a, identity) = a.
template <typename T, typename Shuffle, typename Merge>
__device__ __forceinline__ T block_reduce(T value, const T& identity, Shuffle shuffle, Merge merge) {
  static_assert(kMaxWarps == kWarp, "a value for each lane");
  PF_SHARED(T[kMaxWarps], of_warp);
  value = warp_reduce(value, shuffle, merge);
  const int lane = threadIdx.x % kWarp;
  __syncthreads();  // of_warp may still be read by the previous reduction
  if (lane == 0) of_warp[threadIdx.x / kWarp] = value;
  __syncthreads();
  return warp_reduce(lane < int(blockDim.x) / kWarp ? of_warp[lane] : identity, shuffle, merge);
}

// Several sums that are made together.
template <typename A, int N>
struct Sums {
  A values[N] = {};
};

template <typename A, int N>
__device__ __forceinline__ Sums<A, N> block_sum(const Sums<A, N>& mine) {
  const auto shuffle = [](Sums<A, N> sums, int offset) {
#pragma unroll
    for (int k = 0; k < N; ++k) sums.values[k] = __shfl_xor_sync(kFullMask, sums.values[k], offset);
    return sums;
  };
  const auto add = [](Sums<A, N> a, const Sums<A, N>& b) {
#pragma unroll
    for (int k = 0; k < N; ++k) a.values[k] += b.values[k];
    return a;
  };
  return block_reduce(mine, Sums<A, N>{}, shuffle, add);
}

// True in every thread of the block that is the last of `blocks` to come here; it then sees all that the others wrote
// to global memory before. `ticket` starts at 0.
__device__ __forceinline__ bool is_last_block(unsigned* ticket, unsigned blocks) {
  if (blocks == 1) return true;
  PF_SHARED(bool, last);
  __syncthreads();  // every thread has written what the last block will read
  if (threadIdx.x == 0) {
    __threadfence();
    last = atomicAdd(ticket, 1u) == blocks - 1;
    __threadfence();
  }
  __syncthreads();
  return last;
}

}  // namespace prograd::cuda
