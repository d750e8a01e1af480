// The local soft-argmax of heat maps: a block for each map finds its peak, then the weights of the window around it.
// The backward is told the peak, reads the window alone, and writes every value of its map once.
#include "soft_argmax.h"

#include "../common/math.h"
#include "reduce.cuh"
#include "storage.cuh"
#include "vector.cuh"

namespace prograd::cuda {

constexpr int kMapThreads = 256;

// The first of the largest values; the first NaN where there is one.
template <typename A>
struct Peak {
  A value = -std::numeric_limits<A>::infinity();
  int64_t place = std::numeric_limits<int64_t>::max();

  __device__ __forceinline__ bool is_nan() const { return value != value; }
  __device__ __forceinline__ bool before(const Peak& other) const {
    if (is_nan() != other.is_nan()) return is_nan();
    return value > other.value || ((value == other.value || is_nan()) && place < other.place);
  }
};

template <typename T>
struct MapArguments {
  using A = Accumulation<T>;
  const T* values;  // (maps, height, width)
  int64_t height, width, window;
  A temperature;
  A* points;       // (maps, 2)
  int64_t* peaks;  // (maps), of the forward
  const int64_t* given_peaks;
  const A* gradient;  // (maps, 2)
  T* d_values;        // as the values
};

// A map by the threads of its block: visit(address of a pack, place of its first value, begin and end of those in the
// map, whether the pack is aligned).
template <typename T, typename Visit>
__device__ __forceinline__ void each_pack(T* start, int64_t size, Visit visit) {
  constexpr int N = kVector<T>;
  const int before = elements_before(start);
  const PackedRow<T> row(start, before);
  for (int64_t k = threadIdx.x; k * N < before + size; k += blockDim.x) {
    visit(row.first + k * N, k * N - before, k == 0 ? before : 0, before + size - k * N, row.aligned);
  }
}

// The place of a map's peak, by the whole block; every thread has the result.
template <typename T>
__device__ __forceinline__ int64_t peak_of(const T* values, int64_t size) {
  using A = Accumulation<T>;
  constexpr int N = kVector<T>;
  Peak<A> peak;
  each_pack(values, size, [&](const T* from, int64_t place, int begin, int64_t end, bool aligned) {
    Pack<T> pack;
    read(pack, from, begin, end, aligned);
#pragma unroll
    for (int i = 0; i < N; ++i) {
      if (i < begin || i >= end) continue;
      const Peak<A> here{widen(pack.values[i]), place + i};
      if (here.before(peak)) peak = here;
    }
  });
  peak = block_reduce(
      peak, Peak<A>{},
      [](const Peak<A>& mine, int offset) {
        return Peak<A>{__shfl_xor_sync(kFullMask, mine.value, offset), __shfl_xor_sync(kFullMask, mine.place, offset)};
      },
      [](const Peak<A>& a, const Peak<A>& b) { return b.before(a) ? b : a; });
  return peak.place;
}

template <typename T>
struct MapWindow {
  using A = Accumulation<T>;
  int64_t row, column;  // of its first value
  A top, sum, x, y;     // the weights e^(temperature h - top), their sum, and the point

  // By the whole block; every thread has the result.
  __device__ __forceinline__ MapWindow(const MapArguments<T>& arguments, const T* values, int64_t peak) {
    const int64_t height = arguments.height, width = arguments.width, d = arguments.window;
    row = peak / width - d / 2;
    column = peak % width - d / 2;
    // no value is larger, but outside of the map are zeros
    const bool inside = row >= 0 && column >= 0 && row + d <= height && column + d <= width;
    top = arguments.temperature * widen(values[peak]);
    if (!inside && top <= A(0)) top = A(0);
    Sums<A, 3> sums;
    for (int i = threadIdx.x; i < int(d * d); i += blockDim.x) {
      const int64_t at_row = row + i / int(d), at_column = column + i % int(d);
      const bool in_map = at_row >= 0 && at_row < height && at_column >= 0 && at_column < width;
      const A weight = weight_of(arguments, in_map ? widen(values[at_row * width + at_column]) : A(0));
      sums.values[0] += weight;
      sums.values[1] += weight * A(i % int(d));
      sums.values[2] += weight * A(i / int(d));
    }
    sums = block_sum(sums);
    sum = sums.values[0];
    x = A(column) + sums.values[1] / sum;
    y = A(row) + sums.values[2] / sum;
  }

  __device__ __forceinline__ A weight_of(const MapArguments<T>& arguments, A value) const {
    return exp(arguments.temperature * value - top);
  }
};

template <typename T>
__global__ void __launch_bounds__(kMapThreads) soft_argmax_kernel(PF_CONSTANT MapArguments<T> arguments) {
  const int64_t map = blockIdx.x, size = arguments.height * arguments.width;
  const T* values = arguments.values + map * size;
  const int64_t peak = peak_of(values, size);
  const MapWindow<T> window(arguments, values, peak);
  if (threadIdx.x != 0) return;
  arguments.peaks[map] = peak;
  arguments.points[2 * map] = window.x;
  arguments.points[2 * map + 1] = window.y;
}

template <typename T>
__global__ void __launch_bounds__(kMapThreads) soft_argmax_backward_kernel(PF_CONSTANT MapArguments<T> arguments) {
  using A = Accumulation<T>;
  constexpr int N = kVector<T>;
  const int64_t map = blockIdx.x, width = arguments.width, size = arguments.height * width, d = arguments.window;
  const T* values = arguments.values + map * size;
  const int64_t given = arguments.given_peaks[map];
  const int64_t peak = given < 0 ? 0 : given < size ? given : size - 1;  // whatever the caller made up
  const MapWindow<T> window(arguments, values, peak);
  const A g_x = arguments.gradient[2 * map], g_y = arguments.gradient[2 * map + 1];
  const int64_t first = window.row * width, last = (window.row + d) * width;  // places of the window's rows
  T* result = arguments.d_values + map * size;
  each_pack(result, size, [&](T* to, int64_t place, int begin, int64_t end, bool aligned) {
    A slopes[N];
#pragma unroll
    for (int i = 0; i < N; ++i) slopes[i] = A(0);
    if (place + N > first && place < last) {
#pragma unroll
      for (int i = 0; i < N; ++i) {
        if (i < begin || i >= end) continue;
        const int64_t row = (place + i) / width, column = (place + i) % width;
        if (row < window.row || row >= window.row + d || column < window.column || column >= window.column + d) {
          continue;
        }
        const A weight = window.weight_of(arguments, widen(values[place + i])) / window.sum;
        slopes[i] = arguments.temperature * weight * ((A(column) - window.x) * g_x + (A(row) - window.y) * g_y);
      }
    }
    store<N, T>(to, slopes, begin, end, aligned);
  });
}

// ---- the operators

template <typename T>
MapArguments<T> map_arguments(const HeatMaps& maps) {
  return {static_cast<const T*>(maps.values),
          maps.height,
          maps.width,
          maps.window,
          Accumulation<T>(maps.temperature),
          nullptr,
          nullptr,
          nullptr,
          nullptr,
          nullptr};
}

void local_soft_argmax(Storage storage, const HeatMaps& maps, void* points, int64_t* peaks, void* stream) {
  if (maps.maps == 0) return;
  with_storage(storage, [&](auto type) {
    using T = typename decltype(type)::type;
    MapArguments<T> arguments = map_arguments<T>(maps);
    arguments.points = static_cast<Accumulation<T>*>(points);
    arguments.peaks = peaks;
    launch(soft_argmax_kernel<T>, maps.maps, kMapThreads, 0, false, stream, arguments);
  });
}

void local_soft_argmax_backward(Storage storage, const HeatMaps& maps, const int64_t* peaks, const void* gradient,
                                void* d_maps, void* stream) {
  if (maps.maps == 0) return;
  with_storage(storage, [&](auto type) {
    using T = typename decltype(type)::type;
    MapArguments<T> arguments = map_arguments<T>(maps);
    arguments.given_peaks = peaks;
    arguments.gradient = static_cast<const Accumulation<T>*>(gradient);
    arguments.d_values = static_cast<T*>(d_maps);
    launch(soft_argmax_backward_kernel<T>, maps.maps, kMapThreads, 0, false, stream, arguments);
  });
}

}  // namespace prograd::cuda
