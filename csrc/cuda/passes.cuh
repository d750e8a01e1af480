// One launch that goes over blocks of work twice: the second pass begins when every block has ended the first, and sees
// what it wrote. The launch is cooperative, so that its blocks can wait for each other; where there is more work than
// blocks that run at the same time, each takes some in turn.
//
// Work has first_blocks and second_blocks, which count the blocks of work of the passes, below 2^31, and `sums` tickets
// for the second one.
#pragma once

#include "platform.cuh"

namespace prograd::cuda {

template <typename Pass>
__device__ __forceinline__ void in_turn(int64_t blocks, Pass pass) {
#pragma unroll 1
  for (unsigned block = blockIdx.x; block < blocks; block += gridDim.x) {
    pass(block);
    __syncthreads();  // other warps may still read shared memory
  }
}

// The value, as if it were another one in each turn of a loop: else what depends on it alone is computed before the
// loop and keeps its registers.
__device__ __forceinline__ int of_this_turn(int value) {
#ifdef __CUDACC__
  asm volatile("" : "+r"(value));
#endif
  return value;
}

// first(block), second(block): by all threads of a block.
template <typename Work, typename First, typename Second>
__device__ __forceinline__ void two_passes(const Work& work, First first, Second second) {
  const int64_t threads = int64_t(gridDim.x) * blockDim.x;
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < work.sums; i += threads) work.tickets[i] = 0;
  in_turn(work.first_blocks, first);
  cooperative_groups::this_grid().sync();
  in_turn(work.second_blocks, second);
}

template <typename Work>
void launch_two_passes(void (*kernel)(Work), const std::common_type_t<Work>& work, int threads, size_t shared_bytes,
                       void* stream) {
  const int64_t blocks = std::max(work.first_blocks, work.second_blocks);
  if (blocks == 0) return;
  launch(kernel, std::min(blocks, resident_blocks(kernel, threads, shared_bytes)), threads, shared_bytes, true, stream,
         work);
}

}  // namespace prograd::cuda
