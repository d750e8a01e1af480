// The largest value of a heat map, and the softmax-weighted mean position in the window around it.
#include "../soft_argmax.h"

#include <algorithm>
#include <limits>

#include "stream.h"
#include "table.h"

namespace prograd::cpu {
namespace {

// The first of the largest values; the first NaN where there is one. Whole registers find the part that it is in, which
// alone is gone through one by one.
template <typename S>
std::int64_t argmax(const S* values, std::int64_t n) {
  using T = Accumulation<S>;
  constexpr std::int64_t part = 256;
  T top = -std::numeric_limits<T>::infinity();
  std::int64_t begin = 0;
  int nan = 0;
  for (std::int64_t start = 0; start < n && !nan; start += part) {
    const std::int64_t end = start + part < n ? start + part : n;
    T largest = -std::numeric_limits<T>::infinity();
#pragma omp simd reduction(max : largest) reduction(| : nan)
    for (std::int64_t i = start; i < end; ++i) {
      const T x = load(values[i]);
      nan |= x != x;
      largest = x > largest ? x : largest;
    }
    if (largest > top || nan) begin = start;
    top = largest > top ? largest : top;
  }
  for (std::int64_t i = begin; i < n; ++i) {
    const T x = load(values[i]);
    if (nan ? x != x : x == top) return i;
  }
  return 0;
}

// The window around the largest value; its weights add up to `sum`.
template <typename S>
struct Window {
  using T = Accumulation<S>;
  std::int64_t first_row, first_column;
  T weights[63 * 63], sum = 0, x = 0, y = 0;

  explicit Window(const HeatMap& map) {
    const S* values = static_cast<const S*>(map.values);
    const std::int64_t peak = argmax(values, map.height * map.width), d = map.window;
    first_row = peak / map.width - d / 2;
    first_column = peak % map.width - d / 2;
    T top = -std::numeric_limits<T>::infinity();
    for (std::int64_t i = 0; i < d; ++i) {
      for (std::int64_t j = 0; j < d; ++j) {
        const std::int64_t row = first_row + i, column = first_column + j;
        const bool inside = row >= 0 && row < map.height && column >= 0 && column < map.width;
        const T value = T(map.temperature) * (inside ? load(values[row * map.width + column]) : T(0));
        weights[i * d + j] = value;
        top = value > top || value != value ? value : top;
      }
    }
    T of_columns = 0, of_rows = 0;
    for (std::int64_t i = 0; i < d; ++i) {
      for (std::int64_t j = 0; j < d; ++j) {
        const T weight = exp(weights[i * d + j] - top);
        weights[i * d + j] = weight;
        sum += weight;
        of_columns += weight * T(j);
        of_rows += weight * T(i);
      }
    }
    x = T(first_column) + of_columns / sum;
    y = T(first_row) + of_rows / sum;
  }
};

template <typename S>
void soft_argmax_point(const HeatMap& map, void* point) {
  const Window<S> window(map);
  static_cast<Accumulation<S>*>(point)[0] = window.x;
  static_cast<Accumulation<S>*>(point)[1] = window.y;
}

template <typename S>
void fill_with_zeros(S* to, std::int64_t n, bool past_caches) {
  each_block(to, n, past_caches, [](std::int64_t begin, std::int64_t end, S* out) {
    for (std::int64_t i = 0; i < end - begin; ++i) store(out[i], Accumulation<S>(0));
  });
}

template <typename S>
void soft_argmax_backward(const HeatMap& map, const void* gradient, void* d_values, bool past_caches) {
  using T = Accumulation<S>;
  const Window<S> window(map);
  const T g_x = static_cast<const T*>(gradient)[0], g_y = static_cast<const T*>(gradient)[1];
  S* result = static_cast<S*>(d_values);
  // the rows of the window stay in the caches until its values are in
  const std::int64_t top = std::max<std::int64_t>(window.first_row, 0) * map.width;
  const std::int64_t bottom = std::min(window.first_row + map.window, map.height) * map.width;
  fill_with_zeros(result, top, past_caches);
  fill_with_zeros(result + top, bottom - top, false);
  fill_with_zeros(result + bottom, map.height * map.width - bottom, past_caches);
  for (std::int64_t i = 0; i < map.window; ++i) {
    for (std::int64_t j = 0; j < map.window; ++j) {
      const std::int64_t row = window.first_row + i, column = window.first_column + j;
      if (row < 0 || row >= map.height || column < 0 || column >= map.width) continue;
      const T weight = window.weights[i * map.window + j] / window.sum;
      const T along = (T(column) - window.x) * g_x + (T(row) - window.y) * g_y;
      store(result[row * map.width + column], T(map.temperature) * weight * along);
    }
  }
}

template <typename S>
struct SoftArgmax {
  static constexpr SoftArgmaxKernels kernels{soft_argmax_point<S>, soft_argmax_backward<S>};
};

}  // namespace

template <>
const ByStorage<SoftArgmaxKernels> Compiled<SoftArgmaxKernels>::PF_ISA = by_storage<SoftArgmax>();

}  // namespace prograd::cpu
