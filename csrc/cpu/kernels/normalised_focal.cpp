// The normalised focal loss of one picture. The weights' factor m is known when all pixels were seen: without a largest
// weight it is a factor of all results, which are made at once and multiplied in the end. Loops are in functions of
// their own: within a lambda GCC does not vectorise them.
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

template <typename T>
struct FocalSums {
  T weights, counted, loss;
};

// Of a run of pixels.
template <int exponent, typename S, typename T>
__attribute__((noinline)) FocalSums<T> focal_run(const S* __restrict logits, const std::int64_t* __restrict labels,
                                                 T* __restrict cotangents, std::int64_t n, T gamma, T eps, T alpha) {
  T sum = 0, counted = 0, loss = 0;
#pragma omp simd reduction(+ : sum, counted, loss)
  for (std::int64_t i = 0; i < n; ++i) {
    const T sign = labels[i] == 1 ? T(1) : T(-1), counts = labels[i] == -1 ? T(0) : T(1);
    const LabelProbability<T> of_label(sign * load(logits[i]));
    const FocalPixel<T> pixel(of_label, gamma, eps);
    const T weight = counts == T(0) ? T(0) : focal_power<exponent>(of_label.q, gamma);
    const T factor = (sign > T(0) ? alpha : T(1) - alpha) * (weight * lifted<T>);
    const T value = factor * pixel.log_p, slope = sign * factor * (pixel.of_log + pixel.of_weight * pixel.log_p);
    sum += weight;
    counted += counts;
    loss += counts == T(0) ? T(0) : value;
    cotangents[i] = counts == T(0) ? T(0) : slope;
  }
  return {sum, counted, loss};
}

template <int exponent, typename S, typename T = Accumulation<S>>
double focal_loss_at_once(const Mask& mask) {
  const S* logits = static_cast<const S*>(mask.logits);
  T* __restrict cotangents = static_cast<T*>(mask.cotangents);
  double total = 0, loss = 0;
  std::int64_t count = 0;
  each_run<T>(mask.pixels, [&](std::int64_t begin, std::int64_t end) {
    const FocalSums<T> sums = focal_run<exponent, S, T>(logits + begin, mask.labels + begin, cotangents + begin,
                                                        end - begin, T(mask.gamma), T(mask.eps), T(mask.alpha));
    total += sums.weights;
    count += std::int64_t(sums.counted);
    loss += sums.loss;
  });
  const double mean = -double(count) / (total + mask.eps) / double(count > 0 ? count : 1);
  const T factor = T(mean / lifted<double>);
#pragma omp simd
  for (std::int64_t i = 0; i < mask.pixels; ++i) cotangents[i] *= factor;
  return loss * mean / lifted<double>;
}

// The weights of a run of pixels, and how many count.
template <int exponent, typename S, typename T>
__attribute__((noinline)) FocalSums<T> focal_weights(const S* __restrict logits, const std::int64_t* __restrict labels,
                                                     std::int64_t n, T gamma) {
  T sum = 0, counted = 0;
#pragma omp simd reduction(+ : sum, counted)
  for (std::int64_t i = 0; i < n; ++i) {
    const T sign = labels[i] == 1 ? T(1) : T(-1), counts = labels[i] == -1 ? T(0) : T(1);
    const T weight = focal_power<exponent>(LabelProbability<T>(sign * load(logits[i])).q, gamma);
    sum += counts == T(0) ? T(0) : weight;
    counted += counts;
  }
  return {sum, counted, T(0)};
}

// The loss of a run of pixels whose weights are m = `scale` times their power, `most` at most; 1 / n = `share`.
template <int exponent, typename S, typename T>
__attribute__((noinline)) T focal_cut_run(const S* __restrict logits, const std::int64_t* __restrict labels,
                                          T* __restrict cotangents, std::int64_t n, T gamma, T eps, T alpha, T scale,
                                          T most, T share) {
  T loss = 0;
#pragma omp simd reduction(+ : loss)
  for (std::int64_t i = 0; i < n; ++i) {
    const T sign = labels[i] == 1 ? T(1) : T(-1), counts = labels[i] == -1 ? T(0) : T(1);
    const LabelProbability<T> of_label(sign * load(logits[i]));
    const FocalPixel<T> pixel(of_label, gamma, eps);
    const T weight = scale * focal_power<exponent>(of_label.q, gamma);
    const T factor = (sign > T(0) ? alpha : T(1) - alpha) * (weight >= most ? most : weight) * share;
    const T of_weight = weight >= most ? T(0) : pixel.of_weight * pixel.log_p;
    const T value = factor * pixel.log_p, slope = sign * factor * (pixel.of_log + of_weight);
    loss -= counts == T(0) ? T(0) : value;
    cotangents[i] = counts == T(0) ? T(0) : -slope;
  }
  return loss;
}

template <int exponent, typename S, typename T = Accumulation<S>>
double focal_loss_of_cut_weights(const Mask& mask) {
  const S* logits = static_cast<const S*>(mask.logits);
  const T gamma = T(mask.gamma);
  double total = 0, loss = 0;
  std::int64_t count = 0;
  each_run<T>(mask.pixels, [&](std::int64_t begin, std::int64_t end) {
    const auto sums = focal_weights<exponent, S, T>(logits + begin, mask.labels + begin, end - begin, gamma);
    total += sums.weights;
    count += std::int64_t(sums.counted);
  });
  const T scale = T(double(count) / (total + mask.eps)), share = T(1) / T(count > 0 ? count : 1);
  each_run<T>(mask.pixels, [&](std::int64_t begin, std::int64_t end) {
    loss +=
        focal_cut_run<exponent, S, T>(logits + begin, mask.labels + begin, static_cast<T*>(mask.cotangents) + begin,
                                      end - begin, gamma, T(mask.eps), T(mask.alpha), scale, T(mask.max_mult), share);
  });
  return loss;
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
