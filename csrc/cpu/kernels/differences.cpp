// Sum and gradient of a loss of differences on contiguous memory.
#include "../differences.h"

#include "../../formulas/differences.h"
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

template <typename S>
struct Differences {
  using T = Accumulation<S>;

  static double loss(const Difference& all, std::int64_t n) {
    const S *x = static_cast<const S*>(all.prediction), *t = static_cast<const S*>(all.target);
    T* cotangents = static_cast<T*>(all.cotangents);
    if (!all.soft_wing) return difference_loss(x, t, cotangents, n, SquaredError<T>{}, all.factor);
    return difference_loss(x, t, cotangents, n, SoftWing<T>::of(all.omega1, all.omega2, all.epsilon), all.factor);
  }

  static constexpr DifferenceKernels kernels{loss};
};

}  // namespace

template <>
const ByStorage<DifferenceKernels> Compiled<DifferenceKernels>::PF_ISA = by_storage<Differences>();

}  // namespace prograd::cpu
