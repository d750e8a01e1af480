// Sums and gradients of losses of differences on contiguous memory.
#include "../differences.h"

#include "../../formulas/differences.h"
#include "stream.h"
#include "sums.h"
#include "table.h"

namespace prograd::cpu {
namespace {

// Sum of f(x - t) over n elements; writes factor f'(x - t).
template <typename S, typename F, typename T = Accumulation<S>>
double difference_loss(const S* __restrict x, const S* __restrict t, T* __restrict cotangents, std::int64_t n, F f,
                       double factor_) {
  const T factor = T(factor_);
  double total = 0;
  each_run<T>(n, [&](std::int64_t begin, std::int64_t end) {
    T sum = 0;
#pragma omp simd reduction(+ : sum)
    for (std::int64_t i = begin; i < end; ++i) {
      const T difference = load(x[i]) - load(t[i]);
      sum += f.value(difference);
      cotangents[i] = factor * f.slope(difference);
    }
    total += sum;
  });
  return total;
}

// to[row or column] += share * from[the other end], for every edge.
template <bool from_columns, typename T>
void along_edges(const Landmarks& of, const T* __restrict from, T* __restrict to) {
  for (std::int64_t e = 0; e < of.edges; ++e) {
    const std::int64_t row = of.rows[e], column = of.columns[e];
    const T share = T(of.shares[row]), *source = from + (from_columns ? column : row) * of.axes;
    T* target = to + (from_columns ? row : column) * of.axes;
    for (std::int64_t axis = 0; axis < of.axes; ++axis) target[axis] += share * source[axis];
  }
}

// The offsets of the differences are the differences of the offsets.
template <typename S, typename T = Accumulation<S>>
void structure_loss(const Landmarks& of, void* scratch, double* points, double* offsets) {
  const S* __restrict x = static_cast<const S*>(of.prediction), * __restrict t = static_cast<const S*>(of.target);
  const std::int64_t n = of.nodes * of.axes;
  T* __restrict difference = static_cast<T*>(scratch), * __restrict offset = difference + n;
  T* __restrict of_points = of.past_caches ? offset + n : static_cast<T*>(of.of_points);
  T* __restrict of_offsets = of.past_caches ? offset + 2 * n : static_cast<T*>(of.of_offsets);
  const auto f = SoftWing<T>::of(of.omega1, of.omega2, of.epsilon);
  const T factor = T(of.factor);
  each_run<T>(n, [&](std::int64_t begin, std::int64_t end) {
    T sum = 0;
#pragma omp simd reduction(+ : sum)
    for (std::int64_t i = begin; i < end; ++i) {
      difference[i] = load(x[i]) - load(t[i]);
      offset[i] = -difference[i];
      sum += f.value(difference[i]);
      of_points[i] = factor * f.slope(difference[i]);
    }
    *points += sum;
  });
  along_edges<true>(of, difference, offset);
  each_run<T>(n, [&](std::int64_t begin, std::int64_t end) {
    T sum = 0;
#pragma omp simd reduction(+ : sum)
    for (std::int64_t i = begin; i < end; ++i) {
      sum += f.value(offset[i]);
      offset[i] = factor * f.slope(offset[i]);
      of_offsets[i] = -offset[i];
    }
    *offsets += sum;
  });
  along_edges<false>(of, offset, of_offsets);
  if (of.past_caches) {
    stream_copy(of.of_points, of_points, std::size_t(n) * sizeof(T));
    stream_copy(of.of_offsets, of_offsets, std::size_t(n) * sizeof(T));
  }
}

template <typename S>
struct Differences {
  using T = Accumulation<S>;

  static double loss(const Difference& all, std::int64_t n) {
    const S *x = static_cast<const S*>(all.prediction), *t = static_cast<const S*>(all.target);
    T* cotangents = static_cast<T*>(all.cotangents);
    if (!all.soft_wing) return difference_loss(x, t, cotangents, n, SquaredError<T>{}, all.factor);
    return difference_loss(x, t, cotangents, n, SoftWing<T>::of(all.omega1, all.omega2, all.epsilon), all.factor);
  }

  static constexpr DifferenceKernels kernels{loss, structure_loss<S>};
};

}  // namespace

template <>
const ByStorage<DifferenceKernels> Compiled<DifferenceKernels>::PF_ISA = by_storage<Differences>();

}  // namespace prograd::cpu
