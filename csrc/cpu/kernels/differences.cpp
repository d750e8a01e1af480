// Sums and gradients of losses of differences on contiguous memory.
#include "../differences.h"

#include <algorithm>
#include <initializer_list>
#include <type_traits>
#include <utility>

#include "../../formulas/differences.h"
#include "stream.h"
#include "sums.h"
#include "table.h"

namespace prograd::cpu {
namespace {

// The sum of f of a run of differences.
template <typename T, typename F>
struct SumOf {
  const F& f;
  Vector<T> sum{};

  PF_HOST_DEVICE void add(Vector<T> difference) { sum += f.value(difference); }
  PF_HOST_DEVICE Vector<T> total() const { return sum; }
};
template <typename T>
struct SumOf<T, SoftWing<T>> {
  const SoftWing<T>& f;
  Vector<T> sum{};
  SumOfLogarithms<T> logarithms{};

  PF_HOST_DEVICE void add(Vector<T> difference) {
    const Vector<T> d = Arithmetic<Vector<T>>::magnitude(difference);
    sum += d < f.omega1 ? d : broadcast(f.omega1);
    logarithms.add(d < f.omega1 ? broadcast(T(1)) : (d + f.epsilon) * f.inverse);
  }
  PF_HOST_DEVICE Vector<T> total() const { return multiply_add(broadcast(f.omega2), logarithms.total(), sum); }
};

// Sum of f of n differences; difference(c, width) gives a register of them, 0 in lanes behind. Writes factor f'. In two
// loops: the processor looks ahead a hundred instructions or so, and finds more to work on at a time in short ones.
template <typename T, typename F, typename Difference>
double loss_of(std::int64_t n, F f, T factor, T* cotangents, Difference difference) {
  LongSum<T> total;
  each_run<T>(n, [&](std::int64_t begin, std::int64_t end) {
    Vector<T> differences[run];
    SumOf<T, F> sum{f};
    each_vector<T>(end - begin, [&](std::int64_t c, std::int64_t width) {
      const Vector<T> d = difference(begin + c, width);
      differences[c / lanes<T>] = d;
      sum.add(d);
    });
    each_vector<T>(end - begin, [&](std::int64_t c, std::int64_t width) {
      stored(cotangents + begin + c, factor * f.slope(differences[c / lanes<T>]), width);
    });
    total.add(sum.total());
  });
  return total.total();
}

template <typename S, typename F, typename T = Accumulation<S>>
double difference_loss(const S* x, const S* t, T* cotangents, std::int64_t n, F f, double factor) {
  return loss_of(n, f, T(factor), cotangents, [&](std::int64_t c, std::int64_t width) {
    for (const S* from : {x, t}) fetch_ahead(from + c, width);
    return loaded(x + c, width, T(0)) - loaded(t + c, width, T(0));
  });
}

// Lanes of two registers in turns: those of their first halves, or of their second ones.
template <typename T, std::size_t... i>
PF_HOST_DEVICE Vector<T> interleaved(Vector<T> a, Vector<T> b, bool second, std::index_sequence<i...>) {
#ifdef __clang__
  return second ? __builtin_shufflevector(a, b, (sizeof...(i) / 2 + i / 2 + i % 2 * sizeof...(i))...)
                : __builtin_shufflevector(a, b, (i / 2 + i % 2 * sizeof...(i))...);
#else  // which GCC knows from 12 on
  using Place = std::conditional_t<sizeof(T) == 4, std::int32_t, std::int64_t>;
  const Vector<Place> places{Place(i / 2 + i % 2 * sizeof...(i))...};
  return __builtin_shuffle(a, b, second ? places + Place(sizeof...(i) / 2) : places);
#endif
}

// Transposes as many registers as one has lanes: each round lets the first half of the registers take turns with the
// second half, lane by lane.
template <typename T>
PF_HOST_DEVICE void transpose(Vector<T>* x) {
  constexpr std::int64_t n = lanes<T>;
  for (std::int64_t round = 1; round < n; round *= 2) {
    Vector<T> y[n];
    for (std::int64_t i = 0; i < n / 2; ++i) {
      y[2 * i] = interleaved<T>(x[i], x[i + n / 2], false, std::make_index_sequence<n>());
      y[2 * i + 1] = interleaved<T>(x[i], x[i + n / 2], true, std::make_index_sequence<n>());
    }
    std::copy(y, y + n, x);
  }
}

// Samples to lanes: of `samples` rows of n elements, n registers, 0 in the lanes of rows that there are not.
// row(i, c, width) gives a register of row i.
template <typename T, typename Row>
void to_lanes(std::int64_t samples, std::int64_t n, Vector<T>* to, Row row) {
  each_vector<T>(n, [&](std::int64_t c, std::int64_t width) {
    Vector<T> x[lanes<T>];
    for (std::int64_t i = 0; i < lanes<T>; ++i) x[i] = i < samples ? row(i, c, width) : Vector<T>{};
    transpose<T>(x);
    std::copy(x, x + width, to + c);
  });
}

template <typename T>
void from_lanes(const Vector<T>* from, std::int64_t samples, std::int64_t n, T* to) {
  each_vector<T>(n, [&](std::int64_t c, std::int64_t width) {
    Vector<T> x[lanes<T>];
    for (std::int64_t i = 0; i < lanes<T>; ++i) x[i] = i < width ? from[c + i] : Vector<T>{};
    transpose<T>(x);
    for (std::int64_t i = 0; i < samples; ++i) stored(to + i * n + c, x[i], width);
  });
}

// to[node] = Σ weight from[other end] - from[node] over the edges of each node.
template <typename T>
void offsets_of(const Landmarks& of, const WeightedEdges& edges, const Vector<T>* __restrict from,
                Vector<T>* __restrict to) {
  for (std::int64_t node = 0; node < of.nodes; ++node) {
    for (std::int64_t axis = 0; axis < of.axes; ++axis) {
      Vector<T> sum = -from[node * of.axes + axis];
      for (std::int64_t k = edges.starts[node]; k < edges.starts[node + 1]; ++k) {
        sum = multiply_add(broadcast(T(edges.weights[k])), from[edges.others[k] * of.axes + axis], sum);
      }
      to[node * of.axes + axis] = sum;
    }
  }
}

// The offsets of the differences are the differences of the offsets. A lane of a register has a sample of its own, so
// that edges, which differ by node and not by sample, move whole registers.
template <typename S, typename T = Accumulation<S>>
void structure_loss(const Landmarks& of, void* scratch, double* points, double* offsets) {
  const std::int64_t n = of.nodes * of.axes;
  const auto f = SoftWing<T>::of(of.omega1, of.omega2, of.epsilon);
  const T factor = T(of.factor);
  // (n, lanes) each: by node, and by sample
  auto *differences = static_cast<Vector<T>*>(scratch), *slopes = differences + n;
  T* by_sample = reinterpret_cast<T*>(slopes + n);
  for (std::int64_t first = 0; first < of.samples; first += lanes<T>) {
    const std::int64_t samples = std::min(lanes<T>, of.samples - first), begin = first * n, size = samples * n;
    const S *x = static_cast<const S*>(of.prediction) + begin, *t = static_cast<const S*>(of.target) + begin;
    const auto write = [&](void* to, auto make) {
      T* result = static_cast<T*>(to) + begin;
      make(of.past_caches ? by_sample : result);
      if (of.past_caches) stream_copy(result, by_sample, std::size_t(size) * sizeof(T));
    };
    write(of.of_points, [&](T* cotangents) { *points += difference_loss(x, t, cotangents, size, f, factor); });
    to_lanes<T>(samples, n, differences, [&](std::int64_t i, std::int64_t c, std::int64_t width) {
      return loaded(x + i * n + c, width, T(0)) - loaded(t + i * n + c, width, T(0));
    });

    offsets_of<T>(of, of.by_row, differences, slopes);
    *offsets += loss_of(n * lanes<T>, f, factor, reinterpret_cast<T*>(slopes),
                        [&](std::int64_t c, std::int64_t) { return slopes[c / lanes<T>]; });
    offsets_of<T>(of, of.by_column, slopes, differences);
    write(of.of_offsets, [&](T* cotangents) { from_lanes(differences, samples, n, cotangents); });
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
