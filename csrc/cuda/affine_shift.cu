// Affine shift and its backward: a block for a part of one channel, or for a whole one where its sum is asked for.
#include "affine_shift.h"

#include "../common/math.h"
#include "reduce.cuh"
#include "storage.cuh"
#include "vector.cuh"

namespace prograd::cuda {

constexpr int kShiftThreads = 256;
constexpr int kShiftGroups = 8;       // of a launch: a side for each of three axes, and the rest
constexpr int64_t kShiftPart = 8192;  // positions of a block

template <typename T>
struct ShiftArguments {
  using A = Accumulation<T>;
  const T *x, *other;  // what moves; the bias, which may be null, or what the sums are multiplied with
  const A* scale;
  T* out;
  A* sums;
  int64_t channels, first, size;  // of a picture; those of this launch
  int positions, part, parts;     // of a channel; of a block; blocks of a channel
  bool aligned;                   // every channel of every map starts on 16 bytes
  int ends[kShiftGroups], offsets[kShiftGroups], periods[kShiftGroups];
};

// The part of a channel that a block has.
template <typename T>
struct ShiftPart {
  using A = Accumulation<T>;
  static constexpr int N = kVector<T>;
  const ShiftArguments<T>& all;
  int begin, end, offset, period;
  int64_t channel;  // of all pictures
  bool whole;       // packs move as they are

  __device__ explicit ShiftPart(const ShiftArguments<T>& arguments) : all(arguments) {
    const int64_t index = blockIdx.x / all.parts;
    const int of_launch = int(index % all.size);
    int group = 0;
    while (of_launch >= all.ends[group]) ++group;
    offset = all.offsets[group];
    period = all.periods[group];
    channel = index / all.size * all.channels + all.first + of_launch;
    begin = int(blockIdx.x % all.parts) * all.part;
    end = all.positions - begin < all.part ? all.positions : begin + all.part;
    whole = all.aligned && offset % N == 0;  // a run is a multiple of its offset
  }

  __device__ A scale() const { return all.scale ? all.scale[channel] : A(1); }

  // visit(first position in memory, how many, what came there) for each pack of this thread.
  template <typename Visit>
  __device__ __forceinline__ void each_pack(Visit visit) const {
    const int64_t start = channel * all.positions;
    for (int at = begin + int(threadIdx.x) * N; at < end; at += int(blockDim.x) * N) {
      const int valid = end - at < N ? end - at : N;
      A values[N] = {};
      int from = at % period - offset;  // within the run
      if (whole) {
        if (from >= 0 && from < period) load<N, T>(values, all.x + start + at - offset, valid, true);
      } else {
#pragma unroll
        for (int i = 0; i < N; ++i) {
          if (i < valid && from >= 0 && from < period) values[i] = widen(all.x[start + at - offset + i]);
          if (++from == period - offset) from = -offset;
        }
      }
      visit(start + at, valid, values);
    }
  }
};

template <typename T>
__global__ void __launch_bounds__(kShiftThreads) affine_shift_kernel(PF_CONSTANT ShiftArguments<T> all) {
  using A = Accumulation<T>;
  constexpr int N = kVector<T>;
  const ShiftPart<T> part(all);
  const A scale = part.scale();
  part.each_pack([&](int64_t at, int valid, A(&values)[N]) {
    A bias[N] = {};
    if (all.other) load<N, T>(bias, all.other + at, valid, all.aligned);
#pragma unroll
    for (int i = 0; i < N; ++i) values[i] = fused(scale, values[i], bias[i]);
    store<N, T>(all.out + at, values, valid, all.aligned);
  });
}

template <typename T>
__global__ void __launch_bounds__(kShiftThreads) affine_shift_backward_kernel(PF_CONSTANT ShiftArguments<T> all) {
  using A = Accumulation<T>;
  constexpr int N = kVector<T>;
  const ShiftPart<T> part(all);
  const A scale = part.scale();
  Sums<A, 1> sum;
  part.each_pack([&](int64_t at, int valid, A(&values)[N]) {
    A x[N];
    load<N, T>(x, all.other + at, valid, all.aligned);
#pragma unroll
    for (int i = 0; i < N; ++i) {
      sum.values[0] = fused(values[i], x[i], sum.values[0]);
      values[i] *= scale;
    }
    store<N, T>(all.out + at, values, valid, all.aligned);
  });
  sum = block_sum(sum);
  if (threadIdx.x == 0) all.sums[part.channel] = sum.values[0];
}

template <typename T>
void launch_shift(void (*kernel)(ShiftArguments<T>), const void* x, const void* other, const void* scale, void* out,
                  void* sums, const Shift& shift, void* stream) {
  using A = Accumulation<T>;
  if (shift.pictures == 0 || shift.positions == 0) return;
  if (shift.positions > std::numeric_limits<int>::max() / 2) {
    throw std::invalid_argument("affine shift: a channel has more than 2^30 positions");
  }
  ShiftArguments<T> all = {};
  all.x = static_cast<const T*>(x);
  all.other = static_cast<const T*>(other);
  all.scale = static_cast<const A*>(scale);
  all.out = static_cast<T*>(out);
  all.sums = static_cast<A*>(sums);
  all.channels = shift.channels;
  all.positions = int(shift.positions);
  all.part = sums ? all.positions : int(std::min(kShiftPart, shift.positions));
  all.parts = (all.positions + all.part - 1) / all.part;
  all.aligned = is_aligned(x) && is_aligned(other) && is_aligned(out) && all.positions % kVector<T> == 0;
  const int packs = (all.part + kVector<T> - 1) / kVector<T>;
  const int threads = std::min((packs + kWarp - 1) / kWarp * kWarp, kShiftThreads);
  for (int64_t group = 0; group < shift.count; all.first += all.size) {
    int used = 0;
    all.size = 0;
    for (; group < shift.count && used < kShiftGroups; ++group) {
      if (shift.groups[group].channels == 0) continue;
      all.size += shift.groups[group].channels;
      all.ends[used] = int(all.size);
      all.offsets[used] = int(shift.groups[group].offset);
      all.periods[used++] = int(shift.groups[group].period);
    }
    if (all.size) launch(kernel, shift.pictures * all.size * all.parts, threads, 0, false, stream, all);
  }
}

// ---- the operators

void affine_shift(Storage storage, const void* x, const void* scale, const void* bias, void* out, const Shift& shift,
                  void* stream) {
  with_storage(storage, [&](auto type) {
    using T = typename decltype(type)::type;
    launch_shift<T>(affine_shift_kernel<T>, x, bias, scale, out, nullptr, shift, stream);
  });
}

void affine_shift_backward(Storage storage, const void* gradient, const void* x, const void* scale, void* d_x,
                           void* d_scale, const Shift& shift, void* stream) {
  with_storage(storage, [&](auto type) {
    using T = typename decltype(type)::type;
    launch_shift<T>(affine_shift_backward_kernel<T>, gradient, x, scale, d_x, d_scale, shift, stream);
  });
}

}  // namespace prograd::cuda
