// Losses and predictions averaged over samples of the prompt. A block for each sample and row, since there are few
// rows:
//   sample_sums_kernel         maximum and sum of exp of a row of logits, and the log-probability of its label
//   sample_cotangents_kernel   from the log-probabilities of all samples, each one's share; cotangents and losses
//   sample_log_probs_kernel    a thread for each row and class goes over the samples
// The second read of the logits comes from the second-level cache up to its size.
#include "samples.h"

#include "../formulas/samples.h"
#include "reduce.cuh"
#include "storage.cuh"
#include "vector.cuh"

namespace prograd::cuda {

constexpr int kSampleThreads = 256;

// Part of a row of logits: maximum, and sum of exp relative to it. lowest(): keeps -inf - (-inf) out.
template <typename A>
struct SoftmaxPart {
  A max = std::numeric_limits<A>::lowest(), sum = 0;

  template <int N>
  __device__ __forceinline__ void add(const A (&z)[N]) {
    A largest = max;
#pragma unroll
    for (int i = 0; i < N; ++i) largest = larger(z[i], largest);
    sum *= exp(max - largest);
    max = largest;
#pragma unroll
    for (int i = 0; i < N; ++i) sum += exp(z[i] - largest);
  }

  __device__ __forceinline__ SoftmaxPart merged(const SoftmaxPart& other) const {
    const A largest = larger(max, other.max);
    return {largest, sum * exp(max - largest) + other.sum * exp(other.max - largest)};
  }

  __device__ __forceinline__ SoftmaxPart from_lane(int offset) const {
    return {__shfl_xor_sync(kFullMask, max, offset), __shfl_xor_sync(kFullMask, sum, offset)};
  }
};

template <typename T>
struct SampleArguments {
  using A = Accumulation<T>;
  const T* logits;  // (samples, rows, classes)
  const int64_t* labels;
  int64_t samples, rows, classes;
  Reduction reduction;
  A* cotangents;  // as the logits
  A* losses;
  A* log_probs;           // (rows, classes)
  SoftmaxPart<A>* parts;  // (samples, rows)
  A* at_label;            // (samples, rows)
  A* row_losses;          // losses itself where there is no reduction
  unsigned* ticket;
};

template <typename T>
__global__ void __launch_bounds__(kSampleThreads) sample_sums_kernel(PF_CONSTANT SampleArguments<T> arguments) {
  using A = Accumulation<T>;
  constexpr int N = kVector<T>;
  const int64_t program = blockIdx.x, classes = arguments.classes;
  const T* start = arguments.logits + program * classes;
  const int before = elements_before(start);
  const PackedRow<const T> row(start, before);
  SoftmaxPart<A> part;
  for (int64_t k = threadIdx.x; k * N < before + classes; k += blockDim.x) {
    Pack<T> pack;
    const int begin = k == 0 ? before : 0;
    const int64_t end = before + classes - k * N;
    read(pack, row.first + k * N, begin, end, row.aligned);
    A z[N];
#pragma unroll
    for (int i = 0; i < N; ++i) {
      z[i] = i >= begin && i < end ? widen(pack.values[i]) : -std::numeric_limits<A>::infinity();
    }
    part.add(z);
  }
  part = block_reduce(
      part, SoftmaxPart<A>{}, [](const SoftmaxPart<A>& mine, int offset) { return mine.from_lane(offset); },
      [](const SoftmaxPart<A>& a, const SoftmaxPart<A>& b) { return a.merged(b); });
  if (threadIdx.x != 0) return;
  arguments.parts[program] = part;
  if (arguments.labels) {
    const int64_t label = arguments.labels[program % arguments.rows];
    const bool known = label >= 0 && label < classes;  // else the row's loss and its cotangents are NaN
    const A z_label = known ? widen(start[label]) : std::numeric_limits<A>::quiet_NaN();
    arguments.at_label[program] = z_label - part.max - log(part.sum);
    if (program == 0) *arguments.ticket = 0;  // for the next kernel
  }
}

// The sum over the rows, by the last block, in an order that depends on their number alone.
template <typename T>
__device__ void finish_samples(const SampleArguments<T>& arguments) {
  using A = Accumulation<T>;
  if (arguments.reduction == Reduction::none) return;
  Sums<A, 1> total;
  for (int64_t row = threadIdx.x; row < arguments.rows; row += blockDim.x) {
    total.values[0] += arguments.row_losses[row];
  }
  total = block_sum(total);
  if (threadIdx.x != 0) return;
  *arguments.losses = arguments.reduction == Reduction::mean ? total.values[0] / A(arguments.rows) : total.values[0];
}

// One block for a multiprocessor is enough: asking for no more keeps ptxas from spilling in double.
template <typename T>
__global__ void __launch_bounds__(kSampleThreads, 1)
    sample_cotangents_kernel(PF_CONSTANT SampleArguments<T> arguments) {
  using A = Accumulation<T>;
  constexpr int N = kVector<T>;
  if (arguments.rows == 0) return finish_samples(arguments);
  const int64_t program = blockIdx.x, classes = arguments.classes, row = program % arguments.rows;
  A top = -std::numeric_limits<A>::infinity(), total = 0;
  for (int64_t s = 0; s < arguments.samples; ++s) top = larger(arguments.at_label[s * arguments.rows + row], top);
  for (int64_t s = 0; s < arguments.samples; ++s) {
    total += sample_share(arguments.at_label[s * arguments.rows + row], top);
  }
  if (program == row && threadIdx.x == 0) arguments.row_losses[row] = -(top + log(total / A(arguments.samples)));

  const SoftmaxPart<A> part = arguments.parts[program];
  const A weight = arguments.reduction == Reduction::mean ? A(1) / A(arguments.rows) : A(1);
  const A share = weight * sample_share(arguments.at_label[program], top) / total;
  const A factor = share / part.sum;
  const int64_t label = arguments.labels[row];
  const T* start = arguments.logits + program * classes;
  const int before = elements_before(start);
  const PackedRow<const T> from(start, before);
  const PackedRow<A> to(arguments.cotangents + program * classes, before);
  for (int64_t k = threadIdx.x; k * N < before + classes; k += blockDim.x) {
    Pack<T> pack;
    const int begin = k == 0 ? before : 0;
    const int64_t end = before + classes - k * N;
    read(pack, from.first + k * N, begin, end, from.aligned);
    A cotangents[N];
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const A p = exp(widen(pack.values[i]) - part.max) * factor;
      cotangents[i] = k * N - before + i == label ? p - share : p;
    }
    store<N, A>(to.first + k * N, cotangents, begin, end, to.aligned);
  }
  if (is_last_block(arguments.ticket, gridDim.x)) finish_samples(arguments);
}

template <typename T>
__global__ void __launch_bounds__(kSampleThreads) sample_log_probs_kernel(PF_CONSTANT SampleArguments<T> arguments) {
  using A = Accumulation<T>;
  const int64_t blocks = (arguments.classes + blockDim.x - 1) / blockDim.x;
  const int64_t row = int64_t(blockIdx.x) / blocks, c = int64_t(blockIdx.x) % blocks * blockDim.x + threadIdx.x;
  if (c >= arguments.classes) return;
  SoftmaxPart<A> mean;
  for (int64_t s = 0; s < arguments.samples; ++s) {
    const int64_t program = s * arguments.rows + row;
    const SoftmaxPart<A> part = arguments.parts[program];
    const A log_prob[1] = {widen(arguments.logits[program * arguments.classes + c]) - part.max - log(part.sum)};
    mean.add(log_prob);
  }
  arguments.log_probs[row * arguments.classes + c] = mean.max + log(mean.sum / A(arguments.samples));
}

template <typename A>
size_t samples_workspace(int64_t samples, int64_t rows) {
  return (sizeof(SoftmaxPart<A>) + sizeof(A)) * samples * rows + sizeof(A) * rows + sizeof(unsigned);
}

template <typename T>
SampleArguments<T> sample_arguments(const T* logits, int64_t samples, int64_t rows, int64_t classes, void* workspace) {
  using A = Accumulation<T>;
  SampleArguments<T> arguments{};
  arguments.logits = logits;
  arguments.samples = samples, arguments.rows = rows, arguments.classes = classes;
  arguments.parts = static_cast<SoftmaxPart<A>*>(workspace);
  arguments.at_label = reinterpret_cast<A*>(arguments.parts + samples * rows);
  arguments.row_losses = arguments.at_label + samples * rows;
  arguments.ticket = reinterpret_cast<unsigned*>(arguments.row_losses + rows);
  return arguments;
}

template <typename T>
void launch_sampled_cross_entropy(SampleArguments<T> arguments, const int64_t* labels, Reduction reduction,
                                  void* losses, void* cotangents, void* stream) {
  arguments.labels = labels;
  arguments.reduction = reduction;
  arguments.losses = static_cast<Accumulation<T>*>(losses);
  arguments.cotangents = static_cast<Accumulation<T>*>(cotangents);
  if (reduction == Reduction::none) arguments.row_losses = arguments.losses;
  const int64_t programs = arguments.samples * arguments.rows;
  if (programs > 0) launch(sample_sums_kernel<T>, programs, kSampleThreads, 0, false, stream, arguments);
  launch(sample_cotangents_kernel<T>, std::max<int64_t>(programs, 1), kSampleThreads, 0, false, stream, arguments);
}

template <typename T>
void launch_sampled_log_probs(SampleArguments<T> arguments, void* log_probs, void* stream) {
  arguments.log_probs = static_cast<Accumulation<T>*>(log_probs);
  const int64_t programs = arguments.samples * arguments.rows;
  const int64_t blocks = arguments.rows * ((arguments.classes + kSampleThreads - 1) / kSampleThreads);
  if (programs > 0) launch(sample_sums_kernel<T>, programs, kSampleThreads, 0, false, stream, arguments);
  if (blocks > 0) launch(sample_log_probs_kernel<T>, blocks, kSampleThreads, 0, false, stream, arguments);
}

// ---- the operators

size_t samples_workspace(Storage storage, int64_t samples, int64_t rows) {
  return with_accumulation(storage,
                           [&](auto type) { return samples_workspace<typename decltype(type)::type>(samples, rows); });
}

void sampled_cross_entropy(Storage storage, const void* logits, const int64_t* labels, int64_t samples, int64_t rows,
                           int64_t classes, Reduction reduction, void* losses, void* cotangents, void* workspace,
                           void* stream) {
  with_storage(storage, [&](auto type) {
    using T = typename decltype(type)::type;
    launch_sampled_cross_entropy(sample_arguments(static_cast<const T*>(logits), samples, rows, classes, workspace),
                                 labels, reduction, losses, cotangents, stream);
  });
}

void sampled_log_probs(Storage storage, const void* logits, int64_t samples, int64_t rows, int64_t classes,
                       void* log_probs, void* workspace, void* stream) {
  with_storage(storage, [&](auto type) {
    using T = typename decltype(type)::type;
    launch_sampled_log_probs(sample_arguments(static_cast<const T*>(logits), samples, rows, classes, workspace),
                             log_probs, stream);
  });
}

}  // namespace prograd::cuda
