// The largest value of a heat map, and the softmax-weighted mean position in the window around it.
#include "../soft_argmax.h"

#include <algorithm>
#include <limits>

#include "stream.h"
#include "table.h"

namespace prograd::cpu {
namespace {

// The largest of n values; NaN where there is one. Four registers take turns, since each waits for its last result.
template <typename S>
Accumulation<S> largest(const S* values, std::int64_t n) {
  using T = Accumulation<S>;
  constexpr int count = 4;
  const Vector<T> lowest = broadcast(-std::numeric_limits<T>::infinity()), zero = broadcast(T(0));
  Vector<T> tops[count] = {lowest, lowest, lowest, lowest}, products[count] = {zero, zero, zero, zero};
  const auto take = [&](int k, const S* from, std::int64_t width) {
    const Vector<T> x = loaded(from, width, load(values[0]));
    tops[k] = x > tops[k] ? x : tops[k];
    products[k] = multiply_add(x, zero, products[k]);  // 0, but for infinity and NaN
  };
  std::int64_t i = 0;
  for (; i + count * lanes<T> <= n; i += count * lanes<T>) {
    for (int k = 0; k < count; ++k) take(k, values + i + k * lanes<T>, lanes<T>);
  }
  for (; i < n; i += lanes<T>) take(0, values + i, std::min(lanes<T>, n - i));
  T top = largest_of<T>(tops[0]), product = sum_of<T>(products[0]);
  for (int k = 1; k < count; ++k) {
    top = larger(top, largest_of<T>(tops[k]));
    product += sum_of<T>(products[k]);
  }
  if (product == product) return top;
  for (i = 0; i < n; ++i) {
    if (load(values[i]) != load(values[i])) return load(values[i]);
  }
  return top;
}

// The first of the largest values; the first NaN where there is one. The largest of each part tells which part has it.
template <typename S>
std::int64_t argmax(const S* values, std::int64_t n) {
  using T = Accumulation<S>;
  constexpr std::int64_t part = 1024;
  T top = -std::numeric_limits<T>::infinity();
  std::int64_t begin = 0;
  for (std::int64_t start = 0; start < n && top == top; start += part) {
    const T here = largest(values + start, std::min(part, n - start));
    if (here <= top) continue;
    top = here;
    begin = start;
  }
  const std::int32_t size = std::int32_t(std::min(part, n - begin));
  std::int32_t first = size;
#pragma omp simd reduction(min : first)
  for (std::int32_t i = 0; i < size; ++i) {
    const T x = load(values[begin + i]);
    const std::int32_t place = x == top || x != x ? i : size;  // without a NaN no x is one
    first = place < first ? place : first;
  }
  return begin + first;
}

// The window around the peak; its weights add up to `sum`.
template <typename S>
struct Window {
  using T = Accumulation<S>;
  static constexpr std::int64_t widest = 63;

  std::int64_t row, column;               // of its first pixel, which may be outside of the map
  std::int64_t top, bottom, left, right;  // what is inside: rows from top to bottom, columns from left to right
  T weights[widest * widest + widest_register], sum = 0, x = 0, y = 0;

  Window(const HeatMap& map, std::int64_t peak) {
    const S* values = static_cast<const S*>(map.values);
    const std::int64_t d = map.window, n = d * d;
    const std::int64_t whole = (n + widest_register - 1) / widest_register * widest_register;  // registers
    row = peak / map.width - d / 2;
    column = peak % map.width - d / 2;
    top = std::max<std::int64_t>(row, 0);
    left = std::max<std::int64_t>(column, 0);
    bottom = std::min(row + d, map.height);
    right = std::min(column + d, map.width);
    std::fill_n(weights, whole, T(0));
    for (std::int64_t i = top; i < bottom; ++i) {
      T* to = weights + (i - row) * d + left - column;
      for (std::int64_t j = left; j < right; ++j) *to++ = T(map.temperature) * load(values[i * map.width + j]);
    }
    T most = -std::numeric_limits<T>::infinity();
#pragma omp simd reduction(max : most)
    for (std::int64_t i = 0; i < n; ++i) most = weights[i] > most ? weights[i] : most;
#pragma omp simd
    for (std::int64_t i = 0; i < whole; ++i) weights[i] = exp(weights[i] - most);
    T of_columns = 0, of_rows = 0;
    for (std::int64_t i = 0; i < d; ++i) {
      T of_row = 0;
      for (std::int64_t j = 0; j < d; ++j) {
        of_row += weights[i * d + j];
        of_columns += weights[i * d + j] * T(j);
      }
      sum += of_row;
      of_rows += of_row * T(i);
    }
    x = T(column) + of_columns / sum;
    y = T(row) + of_rows / sum;
  }
};

template <typename S>
std::int64_t soft_argmax_point(const HeatMap& map, void* point) {
  const std::int64_t peak = argmax(static_cast<const S*>(map.values), map.height * map.width);
  const Window<S> window(map, peak);
  static_cast<Accumulation<S>*>(point)[0] = window.x;
  static_cast<Accumulation<S>*>(point)[1] = window.y;
  return peak;
}

template <typename S>
void soft_argmax_backward(const HeatMap& map, std::int64_t peak, const void* gradient, void* d_values,
                          bool past_caches) {
  using T = Accumulation<S>;
  const Window<S> window(map, peak);
  const T g_x = static_cast<const T*>(gradient)[0], g_y = static_cast<const T*>(gradient)[1];
  S* result = static_cast<S*>(d_values);
  S* to = result;
  const auto zeros_until = [&](std::int64_t place) {
    Writer<S>(to, result + place - to, past_caches).all([](auto, auto) { return broadcast(T(0)); });
    to = result + place;
  };
  for (std::int64_t i = window.top; i < window.bottom; ++i) {
    zeros_until(i * map.width + window.left);
    for (std::int64_t j = window.left; j < window.right; ++j) {
      const T weight = window.weights[(i - window.row) * map.window + j - window.column] / window.sum;
      const T along = (T(j) - window.x) * g_x + (T(i) - window.y) * g_y;
      store(*to++, T(map.temperature) * weight * along);
    }
  }
  zeros_until(map.height * map.width);
}

template <typename S>
struct SoftArgmax {
  static constexpr SoftArgmaxKernels kernels{soft_argmax_point<S>, soft_argmax_backward<S>};
};

}  // namespace

template <>
const ByStorage<SoftArgmaxKernels> Compiled<SoftArgmaxKernels>::PF_ISA = by_storage<SoftArgmax>();

}  // namespace prograd::cpu
