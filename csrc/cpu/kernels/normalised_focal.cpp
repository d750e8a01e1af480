// The normalised focal loss of one picture. The weights' factor m is known when all pixels were seen: without a largest
// weight it is a factor of all results, which are made at once and multiplied in the end.
#include "../normalised_focal.h"

#include <cmath>
#include <limits>

#include "../../formulas/normalised_focal.h"
#include "sums.h"
#include "table.h"

namespace prograd::cpu {
namespace {

// Powers of q below the smallest float come back with m; a power of two rounds nothing.
template <typename T>
constexpr T lifted = T(0x1p90);

template <int exponent, typename S, typename T = Accumulation<S>>
double focal_loss_at_once(const Mask& mask) {
  const S* __restrict logits = static_cast<const S*>(mask.logits);
  const std::int64_t* __restrict labels = mask.labels;
  T* __restrict cotangents = static_cast<T*>(mask.cotangents);
  const T gamma = T(mask.gamma), eps = T(mask.eps), alpha = T(mask.alpha);
  double total = 0, loss = 0;
  std::int64_t count = 0;
  each_run<T>(mask.pixels, [&](std::int64_t begin, std::int64_t end) {
    T sum = 0, counted = 0, of_loss = 0;
#pragma omp simd reduction(+ : sum, counted, of_loss)
    for (std::int64_t i = begin; i < end; ++i) {
      const T sign = labels[i] == 1 ? T(1) : T(-1), counts = labels[i] == -1 ? T(0) : T(1);
      const LabelProbability<T> of_label(sign * load(logits[i]));
      const FocalPixel<T> pixel(of_label, gamma, eps);
      const T weight = counts == T(0) ? T(0) : focal_power<exponent>(of_label.q, gamma);
      const T factor = (labels[i] == 1 ? alpha : T(1) - alpha) * (weight * lifted<T>);
      const T value = factor * pixel.log_p, slope = sign * factor * (pixel.of_log + pixel.of_weight * pixel.log_p);
      sum += weight;
      counted += counts;
      of_loss += counts == T(0) ? T(0) : value;
      cotangents[i] = counts == T(0) ? T(0) : slope;
    }
    total += sum;
    count += std::int64_t(counted);
    loss += of_loss;
  });
  const double mean = -double(count) / (total + mask.eps) / double(count > 0 ? count : 1);
  const T factor = T(mean / lifted<double>);
#pragma omp simd
  for (std::int64_t i = 0; i < mask.pixels; ++i) cotangents[i] *= factor;
  return loss * mean / lifted<double>;
}

template <int exponent, typename S, typename T = Accumulation<S>>
double focal_loss_of_cut_weights(const Mask& mask) {
  const S* __restrict logits = static_cast<const S*>(mask.logits);
  const std::int64_t* __restrict labels = mask.labels;
  T* __restrict cotangents = static_cast<T*>(mask.cotangents);
  const T gamma = T(mask.gamma), eps = T(mask.eps), alpha = T(mask.alpha), most = T(mask.max_mult);
  double total = 0;
  std::int64_t count = 0;
  each_run<T>(mask.pixels, [&](std::int64_t begin, std::int64_t end) {
    T sum = 0, counted = 0;
#pragma omp simd reduction(+ : sum, counted)
    for (std::int64_t i = begin; i < end; ++i) {
      const T z = load(logits[i]), q = LabelProbability<T>(labels[i] == 1 ? z : -z).q;
      const T counts = labels[i] == -1 ? T(0) : T(1);
      sum += counts == T(0) ? T(0) : focal_power<exponent>(q, gamma);
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
      const LabelProbability<T> of_label(sign * z);
      const FocalPixel<T> pixel(of_label, gamma, eps);
      const T weight = scale * focal_power<exponent>(of_label.q, gamma);
      const bool cut = weight >= most, counts = labels[i] != -1;
      const T factor = (labels[i] == 1 ? alpha : T(1) - alpha) * (cut ? most : weight);
      const T slope = pixel.of_log + (cut ? T(0) : pixel.of_weight) * pixel.log_p;
      sum += counts ? -factor * pixel.log_p : T(0);
      cotangents[i] = counts ? -sign * factor * slope * share : T(0);
    }
    loss += sum;
  });
  return loss * double(share);
}

template <int exponent, typename S>
double focal_loss(const Mask& mask) {
  return mask.max_mult > 0 ? focal_loss_of_cut_weights<exponent, S>(mask) : focal_loss_at_once<exponent, S>(mask);
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
