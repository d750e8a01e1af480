// The normalised focal loss of one picture: its weights are summed in a first pass, all else is made in a second.
#include "../normalised_focal.h"

#include <cmath>
#include <limits>

#include "sums.h"
#include "table.h"

namespace prograd::cpu {
namespace {

// q^gamma; the usual exponents keep the loops vectorised
template <int exponent, typename T>
T power(T q, T gamma) {
  if constexpr (exponent == 1) return q;
  if constexpr (exponent == 2) return q * q;
  return std::pow(q, gamma);
}

// The probability p of a label, and q = 1 - p, of z towards it; neither loses digits to the other.
template <typename T>
struct Probability {
  T p, q;

  explicit Probability(T z) {
    const T e = exp(z > T(0) ? -z : z), large = T(1) / (T(1) + e), small = e * large;
    p = z > T(0) ? large : small;
    q = z > T(0) ? small : large;
  }
};

// ln min(p + eps, 1); near 1 by q = 1 - p, which has the digits that p has lost:
// ln(1 - x) = ln u x / (1 - u) with u = 1 - x
template <typename T>
T log_probability(T p, T q, T eps) {
  const T x = q - eps > T(0) ? q - eps : T(0), u = T(1) - x;
  const T near = u == T(1) ? -x : log(u) * x / (T(1) - u);
  const T far = log(p + eps);
  return q < T(0.5) ? near : far;
}

template <int exponent, typename S>
double focal_loss(const Mask& mask) {
  using T = Accumulation<S>;
  const S* __restrict logits = static_cast<const S*>(mask.logits);
  const std::int64_t* __restrict labels = mask.labels;
  T* __restrict cotangents = static_cast<T*>(mask.cotangents);
  const T gamma = T(mask.gamma), eps = T(mask.eps), alpha = T(mask.alpha);
  const T most = mask.max_mult > 0 ? T(mask.max_mult) : std::numeric_limits<T>::infinity();
  double total = 0;
  std::int64_t count = 0;
  each_run<T>(mask.pixels, [&](std::int64_t begin, std::int64_t end) {
    T sum = 0, counted = 0;
#pragma omp simd reduction(+ : sum, counted)
    for (std::int64_t i = begin; i < end; ++i) {
      const T z = load(logits[i]), q = Probability<T>(labels[i] == 1 ? z : -z).q;
      const T counts = labels[i] == -1 ? T(0) : T(1);
      sum += counts == T(0) ? T(0) : power<exponent>(q, gamma);
      counted += counts;
    }
    total += sum;
    count += std::int64_t(counted);
  });
  const T scale = T(double(count) / (total + mask.eps)), share = T(1) / T(count > 0 ? count : 1);
  double loss = 0;
  each_run<T>(mask.pixels, [&](std::int64_t begin, std::int64_t end) {
    T sum = 0;
#pragma omp simd reduction(+ : sum)
    for (std::int64_t i = begin; i < end; ++i) {
      const T z = load(logits[i]), sign = labels[i] == 1 ? T(1) : T(-1);
      const Probability<T> of_label(sign * z);
      const T p = of_label.p, q = of_label.q;
      const T weight = scale * power<exponent>(q, gamma), log_p = log_probability(p, q, eps);
      const bool cut = weight >= most;
      const T factor = (labels[i] == 1 ? alpha : T(1) - alpha) * (cut ? most : weight);
      const T of_log = q > eps ? p * q / (p + eps) : T(0), of_weight = cut ? T(0) : -gamma * p;
      const bool counts = labels[i] != -1;
      sum += counts ? -factor * log_p : T(0);
      cotangents[i] = counts ? -sign * factor * (of_log + of_weight * log_p) * share : T(0);
    }
    loss += sum;
  });
  return loss * double(share);
}

template <typename S>
double focal_loss_of(const Mask& mask) {
  if (mask.gamma == 2) return focal_loss<2, S>(mask);
  if (mask.gamma == 1) return focal_loss<1, S>(mask);
  return focal_loss<0, S>(mask);
}

template <typename S>
struct Focal {
  static constexpr FocalKernels kernels{focal_loss_of<S>};
};

}  // namespace

template <>
const ByStorage<FocalKernels> Compiled<FocalKernels>::PF_ISA = by_storage<Focal>();

}  // namespace prograd::cpu
