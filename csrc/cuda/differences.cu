// Losses of prediction minus target: value and gradient in one read of both, one block for each chunk of elements.
#include "differences.h"

#include "../formulas/differences.h"
#include "reduce.cuh"
#include "storage.cuh"
#include "vector.cuh"

namespace prograd::cuda {

constexpr int kDifferenceThreads = 256;
constexpr int64_t kDifferenceChunk = 8192;  // elements of a block

template <typename T, typename F>
struct DifferenceArguments {
  using A = Accumulation<T>;
  const T *prediction, *target;
  A* cotangents;
  int64_t size;
  bool aligned;  // all three
  F function;
  A factor;
  A* loss;
  A* parts;  // one for each block
  unsigned* ticket;
};

template <typename T, typename F>
__global__ void __launch_bounds__(kDifferenceThreads)
    difference_loss_kernel(PF_CONSTANT DifferenceArguments<T, F> all) {
  using A = Accumulation<T>;
  constexpr int N = kVector<T>;
  const int64_t begin = int64_t(blockIdx.x) * kDifferenceChunk;
  const int64_t end = begin + kDifferenceChunk < all.size ? begin + kDifferenceChunk : all.size;
  Sums<A, 1> sum;
  for (int64_t at = begin + int64_t(threadIdx.x) * N; at < end; at += int64_t(blockDim.x) * N) {
    const int valid = end - at < N ? int(end - at) : N;
    A x[N], t[N];
    load<N, T>(x, all.prediction + at, valid, all.aligned);
    load<N, T>(t, all.target + at, valid, all.aligned);
#pragma unroll
    for (int i = 0; i < N; ++i) {  // beyond the end 0 - 0, of which both functions are 0
      sum.values[0] += all.function.value(x[i] - t[i]);
      x[i] = all.factor * all.function.slope(x[i] - t[i]);
    }
    store<N, A>(all.cotangents + at, x, valid, all.aligned);
  }
  sum = block_sum(sum);
  if (threadIdx.x == 0) all.parts[blockIdx.x] = sum.values[0];
  if (!is_last_block(all.ticket, gridDim.x)) return;
  Sums<A, 1> total;
  __syncthreads();  // of one block alone, thread 0 has written
  for (int64_t part = threadIdx.x; part < gridDim.x; part += blockDim.x) total.values[0] += all.parts[part];
  total = block_sum(total);
  if (threadIdx.x == 0) *all.loss = all.factor * total.values[0];
}

inline int64_t difference_blocks(int64_t size) {
  return std::max<int64_t>((size + kDifferenceChunk - 1) / kDifferenceChunk, 1);
}

template <typename T, typename F>
void launch_difference_loss(const T* prediction, const T* target, int64_t size, F function, double factor, void* loss,
                            void* cotangents, void* workspace, void* stream) {
  using A = Accumulation<T>;
  const int64_t blocks = difference_blocks(size);
  A* parts = static_cast<A*>(workspace);
  auto* ticket = reinterpret_cast<unsigned*>(parts + blocks);
  const bool aligned = is_aligned(prediction) && is_aligned(target) && is_aligned(cotangents);
  const DifferenceArguments<T, F> arguments{prediction, target,    static_cast<A*>(cotangents), size,  aligned,
                                            function,   A(factor), static_cast<A*>(loss),       parts, ticket};
  if (blocks > 1) fill_zero(ticket, sizeof(unsigned), stream);
  launch(difference_loss_kernel<T, F>, blocks, kDifferenceThreads, 0, false, stream, arguments);
}

// ---- the operators

size_t difference_loss_workspace(Storage storage, int64_t size) {
  return with_accumulation(storage, [&](auto type) {
    return difference_blocks(size) * sizeof(typename decltype(type)::type) + sizeof(unsigned);
  });
}

void difference_loss(Storage storage, const void* prediction, const void* target, int64_t size,
                     const DifferenceOptions& options, void* workspace, void* stream) {
  with_storage(storage, [&](auto type) {
    using T = typename decltype(type)::type;
    using A = Accumulation<T>;
    const auto run = [&](auto function) {
      launch_difference_loss(static_cast<const T*>(prediction), static_cast<const T*>(target), size, function,
                             options.factor, options.loss, options.cotangents, workspace, stream);
    };
    if (options.soft_wing) {
      run(SoftWing<A>::of(options.omega1, options.omega2, options.epsilon));
    } else {
      run(SquaredError<A>{});
    }
  });
}

}  // namespace prograd::cuda
