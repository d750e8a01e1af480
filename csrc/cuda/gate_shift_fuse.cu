// Gate, shift and fuse. Sums over a plane, one channel of one frame, have a warp; what moves is carried from frame to
// frame in registers, so that the second pass reads and writes every element once.
#include "gate_shift_fuse.h"

#include "../common/math.h"
#include "reduce.cuh"
#include "storage.cuh"
#include "vector.cuh"

namespace prograd::cuda {

constexpr int kGateThreads = 256;

template <typename T>
struct GateArguments {
  using A = Accumulation<T>;
  const T *x, *gate;
  int64_t clips;
  int frames, channels, half, positions;
  bool aligned;          // every plane of every map starts on 16 bytes
  const T* gradient;     // for the sums of the backward, and for its second pass
  const A *phi, *means;  // means: their gradient
  T *out, *d_gate;
  A* numbers;  // means, or the gradient of phi

  __host__ __device__ int packs() const { return (positions + kVector<T> - 1) / kVector<T>; }  // of a plane
  __device__ int64_t at(int64_t b, int t, int c) const { return ((b * frames + t) * channels + c) * positions; }
  __device__ int64_t at_gate(int64_t b, int t, int k) const { return ((b * 2 + k) * frames + t) * positions; }
  // Of phi, or one of the pair of means.
  __device__ int64_t number(int64_t b, int t, int c) const { return (b * 2 * half + c) * frames + t; }
  __device__ int64_t pair(int64_t b, int t, int c, int rest) const {
    return ((b * 4 + c / half * 2 + rest) * half + c % half) * frames + t;
  }
  // Where a channel goes: the halves of its group are interleaved.
  __device__ int interleaved(int c) const {
    const int j = c % half, quarter = half / 2;
    return c - j + j % quarter * 2 + j / quarter;
  }
  // The frame that a channel takes from is t + this; the one that it moves to is t - this.
  __device__ int step(int c) const { return c < half ? 1 : -1; }
  __device__ bool inside(int t) const { return t >= 0 && t < frames; }
  __device__ int valid(int at) const {
    const int left = positions - at;
    return left < kVector<T> ? left : kVector<T>;
  }
};

// The plane of a warp: frames of a channel are next to each other, so that what two of them read is in a cache.
template <typename T>
struct GatePlane {
  int64_t index = (int64_t(blockIdx.x) * blockDim.x + threadIdx.x) / kWarp, b;
  int t, c, lane = int(threadIdx.x) % kWarp;

  __device__ explicit GatePlane(const GateArguments<T>& all) {
    t = int(index % all.frames);
    c = int(index / all.frames % (2 * all.half));
    b = index / all.frames / (2 * all.half);
  }
};

template <typename A, int N>
__device__ __forceinline__ Sums<A, N> warp_sum(Sums<A, N> sums) {
#pragma unroll
  for (int k = 0; k < N; ++k) {
    for (int offset = kWarp / 2; offset > 0; offset /= 2) {
      sums.values[k] += __shfl_xor_sync(kFullMask, sums.values[k], offset);
    }
  }
  return sums;
}

template <typename T>
__global__ void __launch_bounds__(kGateThreads) gate_shift_means_kernel(PF_CONSTANT GateArguments<T> all) {
  using A = Accumulation<T>;
  constexpr int N = kVector<T>;
  const GatePlane<T> plane(all);
  if (plane.b >= all.clips) return;
  const T* u = all.x + all.at(plane.b, plane.t, plane.c);
  const T* gate = all.gate + all.at_gate(plane.b, plane.t, plane.c / all.half);
  Sums<A, 2> sums;
  for (int at = plane.lane * N; at < all.positions; at += kWarp * N) {
    const int valid = all.valid(at);
    A x[N], g[N];
    load<N, T>(x, u + at, valid, all.aligned);
    load<N, T>(g, gate + at, valid, all.aligned);
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const A passed = g[i] * x[i];
      sums.values[0] += passed;
      sums.values[1] += x[i] - passed;
    }
  }
  sums = warp_sum(sums);
  if (plane.lane != 0) return;
  const int to = plane.t - all.step(plane.c);  // nothing comes to the frame at the other end
  const bool inside = all.inside(to);
  all.numbers[all.pair(plane.b, inside ? to : (to + all.frames) % all.frames, plane.c, 0)] =
      inside ? sums.values[0] / A(all.positions) : A(0);
  all.numbers[all.pair(plane.b, plane.t, plane.c, 1)] = sums.values[1] / A(all.positions);
}

template <typename T>
__global__ void __launch_bounds__(kGateThreads) gate_shift_slopes_kernel(PF_CONSTANT GateArguments<T> all) {
  using A = Accumulation<T>;
  constexpr int N = kVector<T>;
  const GatePlane<T> plane(all);
  if (plane.b >= all.clips) return;
  const int from = plane.t + all.step(plane.c), k = plane.c / all.half;
  const T* u = all.x + all.at(plane.b, plane.t, plane.c);
  const T* gate = all.gate + all.at_gate(plane.b, plane.t, k);
  const T* gradient = all.gradient + all.at(plane.b, plane.t, all.interleaved(plane.c));
  const bool comes = all.inside(from);
  const T* other = all.x + all.at(plane.b, comes ? from : plane.t, plane.c);
  const T* other_gate = all.gate + all.at_gate(plane.b, comes ? from : plane.t, k);
  Sums<A, 1> sum;
  for (int at = plane.lane * N; at < all.positions; at += kWarp * N) {
    const int valid = all.valid(at);
    A x[N], y[N], g[N];
    load<N, T>(x, u + at, valid, all.aligned);
    load<N, T>(g, gate + at, valid, all.aligned);
#pragma unroll
    for (int i = 0; i < N; ++i) y[i] = g[i] * x[i] - x[i];
    if (comes) {
      load<N, T>(x, other + at, valid, all.aligned);
      load<N, T>(g, other_gate + at, valid, all.aligned);
#pragma unroll
      for (int i = 0; i < N; ++i) y[i] = fused(g[i], x[i], y[i]);
    }
    load<N, T>(g, gradient + at, valid, all.aligned);
#pragma unroll
    for (int i = 0; i < N; ++i) sum.values[0] = fused(g[i], y[i], sum.values[0]);
  }
  sum = warp_sum(sum);
  if (plane.lane == 0) all.numbers[all.number(plane.b, plane.t, plane.c)] = sum.values[0];
}

// A thread has a pack of a channel, and goes from frame to frame as the channel moves.
template <typename T>
__global__ void __launch_bounds__(kGateThreads)
    gate_shift_fuse_kernel(PF_CONSTANT GateArguments<T> all, int64_t blocks_of_clip) {
  using A = Accumulation<T>;
  constexpr int N = kVector<T>;
  const int64_t b = blockIdx.x / blocks_of_clip;
  const int index = int(blockIdx.x % blocks_of_clip) * kGateThreads + int(threadIdx.x);
  const int c = index / all.packs(), at = index % all.packs() * N, valid = all.valid(at);
  if (c >= 2 * all.half) return;
  const int k = c / all.half, to = all.interleaved(c), step = all.step(c);
  A came[N] = {};
  for (int i = 0, t = step > 0 ? all.frames - 1 : 0; i < all.frames; ++i, t -= step) {
    A x[N], g[N];
    load<N, T>(x, all.x + all.at(b, t, c) + at, valid, all.aligned);
    load<N, T>(g, all.gate + all.at_gate(b, t, k) + at, valid, all.aligned);
    const A phi = all.phi[all.number(b, t, c)], rest = A(1) - phi;
#pragma unroll
    for (int j = 0; j < N; ++j) {
      const A passed = g[j] * x[j];
      x[j] = fused(phi, came[j], rest * (x[j] - passed));
      came[j] = passed;
    }
    store<N, T>(all.out + all.at(b, t, to) + at, x, valid, all.aligned);
  }
}

// A block has some packs of one group of channels of one frame: `lanes` packs, and of the channels every
// (threads / lanes)-th for a thread. The sums over the channels are for the gate.
template <typename T>
__global__ void __launch_bounds__(kGateThreads)
    gate_shift_fuse_backward_kernel(PF_CONSTANT GateArguments<T> all, int lanes, int tiles) {
  using A = Accumulation<T>;
  constexpr int N = kVector<T>;
  A* sums = dynamic_shared<A>();  // N for each thread
  const int t = int(blockIdx.x % all.frames), tile = int(blockIdx.x / all.frames % tiles);
  const int64_t group = blockIdx.x / all.frames / tiles, b = group / 2;
  const int k = int(group % 2), lane = int(threadIdx.x) % lanes, slice = int(threadIdx.x) / lanes;
  const int at = (tile * lanes + lane) * N, valid = all.valid(at), slices = kGateThreads / lanes;
  const int to = t - (k ? -1 : 1);
  const bool moves = all.inside(to);
  A mine[N] = {};
  if (valid > 0) {
    A gate[N];
    load<N, T>(gate, all.gate + all.at_gate(b, t, k) + at, valid, all.aligned);
    for (int c = k * all.half + slice; c < (k + 1) * all.half; c += slices) {
      const int place = all.interleaved(c);
      const A slope = A(1) - all.phi[all.number(b, t, c)];
      const A offset = all.means[all.pair(b, t, c, 1)] / A(all.positions);
      A g[N], d_rest[N], d_passed[N];
      load<N, T>(g, all.gradient + all.at(b, t, place) + at, valid, all.aligned);
#pragma unroll
      for (int i = 0; i < N; ++i) {
        d_rest[i] = fused(slope, g[i], offset);
        d_passed[i] = -d_rest[i];
      }
      if (moves) {
        const A other_slope = all.phi[all.number(b, to, c)];
        const A other_offset = all.means[all.pair(b, to, c, 0)] / A(all.positions);
        load<N, T>(g, all.gradient + all.at(b, to, place) + at, valid, all.aligned);
#pragma unroll
        for (int i = 0; i < N; ++i) d_passed[i] += fused(other_slope, g[i], other_offset);
      }
      load<N, T>(g, all.x + all.at(b, t, c) + at, valid, all.aligned);
#pragma unroll
      for (int i = 0; i < N; ++i) {
        mine[i] = fused(d_passed[i], g[i], mine[i]);
        g[i] = fused(gate[i], d_passed[i], d_rest[i]);
      }
      store<N, T>(all.out + all.at(b, t, c) + at, g, valid, all.aligned);
    }
  }
#pragma unroll
  for (int i = 0; i < N; ++i) sums[i * kGateThreads + threadIdx.x] = mine[i];
  __syncthreads();
  if (slice != 0 || valid <= 0) return;
  for (int other = 1; other < slices; ++other) {
#pragma unroll
    for (int i = 0; i < N; ++i) mine[i] += sums[i * kGateThreads + other * lanes + lane];
  }
  store<N, T>(all.d_gate + all.at_gate(b, t, k) + at, mine, valid, all.aligned);
}

template <typename T>
GateArguments<T> arguments_of(const GatedClips& clips) {
  if (clips.frames * clips.channels > std::numeric_limits<int>::max() / 8 ||
      clips.channels * (clips.positions + kGateThreads) > std::numeric_limits<int>::max()) {
    throw std::invalid_argument("gate, shift and fuse: a frame has more than 2^31 elements");
  }
  GateArguments<T> all = {};
  all.x = static_cast<const T*>(clips.x);
  all.gate = static_cast<const T*>(clips.gate);
  all.clips = clips.clips;
  all.frames = int(clips.frames);
  all.channels = int(clips.channels);
  all.half = int(clips.half);
  all.positions = int(clips.positions);
  all.aligned = clips.positions % kVector<T> == 0 && is_aligned(clips.x) && is_aligned(clips.gate);
  return all;
}

template <typename T>
void launch_of_planes(void (*kernel)(GateArguments<T>), const GateArguments<T>& all, void* stream) {
  const int64_t planes = all.clips * all.frames * 2 * all.half, warps = kGateThreads / kWarp;
  if (planes) launch(kernel, (planes + warps - 1) / warps, kGateThreads, 0, false, stream, all);
}

// ---- the operators

void gate_shift_means(Storage storage, const GatedClips& clips, void* means, void* stream) {
  with_storage(storage, [&](auto type) {
    using T = typename decltype(type)::type;
    GateArguments<T> all = arguments_of<T>(clips);
    all.numbers = static_cast<Accumulation<T>*>(means);
    launch_of_planes(gate_shift_means_kernel<T>, all, stream);
  });
}

void gate_shift_fuse(Storage storage, const GatedClips& clips, const void* phi, void* out, void* stream) {
  with_storage(storage, [&](auto type) {
    using T = typename decltype(type)::type;
    GateArguments<T> all = arguments_of<T>(clips);
    all.phi = static_cast<const Accumulation<T>*>(phi);
    all.out = static_cast<T*>(out);
    all.aligned = all.aligned && is_aligned(out);
    const int64_t blocks = (int64_t(2) * all.half * all.packs() + kGateThreads - 1) / kGateThreads;
    if (all.clips && blocks) {
      launch(gate_shift_fuse_kernel<T>, all.clips * blocks, kGateThreads, 0, false, stream, all, blocks);
    }
  });
}

void gate_shift_slopes(Storage storage, const GatedClips& clips, const void* gradient, void* d_phi, void* stream) {
  with_storage(storage, [&](auto type) {
    using T = typename decltype(type)::type;
    GateArguments<T> all = arguments_of<T>(clips);
    all.gradient = static_cast<const T*>(gradient);
    all.numbers = static_cast<Accumulation<T>*>(d_phi);
    all.aligned = all.aligned && is_aligned(gradient);
    launch_of_planes(gate_shift_slopes_kernel<T>, all, stream);
  });
}

void gate_shift_fuse_backward(Storage storage, const GatedClips& clips, const void* gradient, const void* phi,
                              const void* d_means, void* d_x, void* d_gate, void* stream) {
  with_storage(storage, [&](auto type) {
    using T = typename decltype(type)::type;
    using A = Accumulation<T>;
    GateArguments<T> all = arguments_of<T>(clips);
    all.gradient = static_cast<const T*>(gradient);
    all.phi = static_cast<const A*>(phi);
    all.means = static_cast<const A*>(d_means);
    all.out = static_cast<T*>(d_x);
    all.d_gate = static_cast<T*>(d_gate);
    all.aligned = all.aligned && is_aligned(gradient) && is_aligned(d_x) && is_aligned(d_gate);
    int lanes = 1;
    while (lanes < kWarp && lanes < all.packs()) lanes *= 2;
    const int tiles = (all.packs() + lanes - 1) / lanes;
    const int64_t blocks = all.clips * 2 * tiles * all.frames;
    const size_t shared = sizeof(A) * kVector<T> * kGateThreads;
    if (blocks) {
      launch(gate_shift_fuse_backward_kernel<T>, blocks, kGateThreads, shared, false, stream, all, lanes, tiles);
    }
  });
}

}  // namespace prograd::cuda
