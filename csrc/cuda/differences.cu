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

// ---- points and their offsets from the mean of their neighbours: a block for each sample

constexpr int kStructureThreads = 128;

template <typename T>
struct StructureArguments {
  using A = Accumulation<T>;
  const T *prediction, *target;
  const int64_t *rows, *columns;
  int64_t samples, nodes;
  int axes, size;  // of a sample
  Segments by_row, by_column;
  SoftWing<A> function;
  A factor;
  A* losses;
  A* cotangents;
  A* parts;    // (2, samples)
  A* scratch;  // (samples, 2, size), where shared memory has no room for it
  unsigned* ticket;
};

// As the authors' matrix, in float.
template <typename A>
__device__ __forceinline__ A share_of(const Segments& by_row, int64_t row) {
  return A(1.0f / float(by_row.starts[row + 1] - by_row.starts[row]));
}

template <typename T, bool shared>
__global__ void __launch_bounds__(kStructureThreads) structure_loss_kernel(PF_CONSTANT StructureArguments<T> all) {
  using A = Accumulation<T>;
  const int64_t sample = blockIdx.x, start = sample * all.size;
  A* differences;
  if constexpr (shared) differences = dynamic_shared<A>();
  else differences = all.scratch + 2 * start;
  A* slopes = differences + all.size;
  A *of_points = all.cotangents + start, *of_offsets = of_points + all.samples * all.size;
  Sums<A, 2> sums;
  for (int i = threadIdx.x; i < all.size; i += blockDim.x) {
    const A difference = widen(all.prediction[start + i]) - widen(all.target[start + i]);
    differences[i] = difference;
    sums.values[0] += all.function.value(difference);
    of_points[i] = all.factor * all.function.slope(difference);
  }
  __syncthreads();
  // the offsets of the differences are the differences of the offsets; an edge to no node brings NaN
  const auto known = [&](int64_t node) { return node >= 0 && node < all.nodes; };
  for (int i = threadIdx.x; i < all.size; i += blockDim.x) {
    const int node = i / all.axes, axis = i % all.axes;
    A offset = -differences[i];
    const A share = share_of<A>(all.by_row, node);
    for (int64_t k = all.by_row.starts[node]; k < all.by_row.starts[node + 1]; ++k) {
      const int64_t column = all.columns[all.by_row.order[k]];
      offset += share * (known(column) ? differences[column * all.axes + axis] : std::numeric_limits<A>::quiet_NaN());
    }
    sums.values[1] += all.function.value(offset);
    slopes[i] = all.factor * all.function.slope(offset);
  }
  __syncthreads();
  for (int i = threadIdx.x; i < all.size; i += blockDim.x) {
    const int node = i / all.axes, axis = i % all.axes;
    A back = -slopes[i];
    for (int64_t k = all.by_column.starts[node]; k < all.by_column.starts[node + 1]; ++k) {
      const int64_t row = all.rows[all.by_column.order[k]];
      back += known(row) ? share_of<A>(all.by_row, row) * slopes[row * all.axes + axis]
                         : std::numeric_limits<A>::quiet_NaN();
    }
    of_offsets[i] = back;
  }
  sums = block_sum(sums);
  if (threadIdx.x == 0) {
    all.parts[sample] = sums.values[0];
    all.parts[all.samples + sample] = sums.values[1];
  }
  if (!is_last_block(all.ticket, gridDim.x)) return;
  Sums<A, 2> totals;
  __syncthreads();  // of one block alone, thread 0 has written
  for (int64_t part = threadIdx.x; part < all.samples; part += blockDim.x) {
    totals.values[0] += all.parts[part];
    totals.values[1] += all.parts[all.samples + part];
  }
  totals = block_sum(totals);
  if (threadIdx.x != 0) return;
  all.losses[0] = all.factor * totals.values[0];
  all.losses[1] = all.factor * totals.values[1];
}

// Both arrays of a sample, where a block may have so much.
inline bool structure_is_shared(int64_t size, size_t item) { return 2 * size_t(size) * item <= max_shared_bytes(); }

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

size_t structure_loss_workspace(Storage storage, const Structure& structure) {
  return with_accumulation(storage, [&](auto type) {
    const size_t item = sizeof(typename decltype(type)::type);
    const int64_t size = structure.nodes * structure.axes;
    const size_t scratch = structure_is_shared(size, item) ? 0 : size_t(structure.samples * size);
    return 2 * item * (std::max<size_t>(structure.samples, 1) + scratch) + sizeof(unsigned);
  });
}

void structure_loss(Storage storage, const Structure& structure, void* workspace, void* stream) {
  with_storage(storage, [&](auto type) {
    using T = typename decltype(type)::type;
    using A = Accumulation<T>;
    const int64_t samples = structure.samples, size = structure.nodes * structure.axes;
    const int64_t blocks = std::max<int64_t>(samples, 1);  // nothing has a loss, too
    if (size > std::numeric_limits<int>::max()) throw std::runtime_error("structure_loss: too many landmarks");
    const bool shared = structure_is_shared(size, sizeof(A));
    A *parts = static_cast<A*>(workspace), *scratch = parts + 2 * blocks;
    auto* ticket = reinterpret_cast<unsigned*>(scratch + (shared ? 0 : 2 * samples * size));
    const StructureArguments<T> all{static_cast<const T*>(structure.prediction),
                                    static_cast<const T*>(structure.target),
                                    structure.rows,
                                    structure.columns,
                                    samples,
                                    structure.nodes,
                                    int(structure.axes),
                                    samples > 0 ? int(size) : 0,
                                    structure.by_row,
                                    structure.by_column,
                                    SoftWing<A>::of(structure.omega1, structure.omega2, structure.epsilon),
                                    A(structure.factor),
                                    static_cast<A*>(structure.losses),
                                    static_cast<A*>(structure.cotangents),
                                    parts,
                                    scratch,
                                    ticket};
    if (blocks > 1) fill_zero(ticket, sizeof(unsigned), stream);
    if (shared) {
      launch(structure_loss_kernel<T, true>, blocks, kStructureThreads, 2 * size_t(size) * sizeof(A), false, stream,
             all);
    } else {
      launch(structure_loss_kernel<T, false>, blocks, kStructureThreads, 0, false, stream, all);
    }
  });
}

}  // namespace prograd::cuda
