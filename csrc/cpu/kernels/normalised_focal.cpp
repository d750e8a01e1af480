// The normalised focal loss of one picture. The weights' factor m is known when all pixels were seen: without a largest
// weight it is a factor of all results, which are made at once and multiplied in the end.
//
// A run of pixels is gone through in several short loops: the processor looks ahead a hundred instructions or so, and
// finds more pixels to work on at a time in a short one.
#include "../normalised_focal.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>

#include "../../formulas/normalised_focal.h"
#include "stream.h"
#include "sums.h"
#include "table.h"

namespace prograd::cpu {
namespace {

// Powers of q below the smallest float come back with m; a power of two rounds nothing.
template <typename T>
constexpr T lifted = T(0x1p90);

template <typename T>
struct FocalSums {
  LongSum<T> weights, counted, loss;
};

// The labels of a register of pixels.
template <typename T>
class Labels {
  using V = Vector<T>;
  using Integers = decltype(V{} == V{});
  using Integer = std::remove_reference_t<decltype(Integers{}[0])>;
  typedef std::make_unsigned_t<Integer> Naturals __attribute__((vector_size(vector_bytes)));

 public:
  PF_HOST_DEVICE explicit Labels(const std::int64_t* from) {
    Integer narrow[lanes<T>];
#pragma omp simd
    for (std::int64_t k = 0; k < lanes<T>; ++k) narrow[k] = Integer(from[k]);
    std::memcpy(&labels_, narrow, sizeof narrow);
  }

  PF_HOST_DEVICE V choose(V object, V background) const { return labels_ == 1 ? object : background; }
  PF_HOST_DEVICE V counting(V x) const { return labels_ == -1 ? V{} : x; }  // 0 where a pixel is ignored

  // Logits towards their labels; NaN of a label that there is not, which makes NaN of all results.
  PF_HOST_DEVICE V towards(V z) const {
    z = choose(z, -z);
    return counting(Naturals(labels_ + 1) > 2 ? broadcast(std::numeric_limits<T>::quiet_NaN()) : z);
  }

 private:
  Integers labels_;
};

// What a loss asks of a register of pixels, of their logits z towards the labels, and of `odds`. What log_p asks for
// takes their places.

// Any pixels; the odds are those against a label.
template <typename T>
struct AnyPixels {
  using V = Vector<T>;
  LabelProbability<V> of_label;
  FocalPixel<V> pixel;

  PF_HOST_DEVICE AnyPixels(V, V odds, T gamma, T eps) : of_label(odds), pixel(of_label, gamma, eps) {}
  PF_HOST_DEVICE static V odds(V z) { return odds_against(z); }
  PF_HOST_DEVICE V q() const { return of_label.q; }
  PF_HOST_DEVICE V of_log() const { return pixel.of_log; }
  PF_HOST_DEVICE V of_weight() const { return pixel.of_weight; }
  PF_HOST_DEVICE void keep(V& rest, V& near) const { rest = pixel.rest, near = pixel.near; }
  PF_HOST_DEVICE static V log_p(V rest, V near, T) { return FocalPixel<V>::log_p(rest, near); }
};

// Pixels for which p + eps is p rounded; the odds are e^-|z|, of what is less likely.
template <typename T>
struct LikelyPixels {
  using V = Vector<T>;
  V z, more, less;
  T gamma, eps;

  PF_HOST_DEVICE LikelyPixels(V z_, V odds, T gamma_, T eps_)
      : z(z_), more(reciprocal(T(1) + odds)), less(odds * more), gamma(gamma_), eps(eps_) {}
  PF_HOST_DEVICE static V odds(V z) { return exp(-Arithmetic<V>::magnitude(z)); }
  // The least z of such pixels: p is 2^24 eps or more there, and e^z a normal number.
  static T least(double eps) {
    const double z = std::log(eps * 0x1p25);
    if (std::is_same_v<T, double> || !(z < -1)) return std::numeric_limits<T>::infinity();
    return larger(T(z), T(-80));
  }
  PF_HOST_DEVICE V q() const { return z < T(0) ? more : less; }
  PF_HOST_DEVICE V of_log() const { return q() > eps ? q() : V{}; }  // p q / (p + eps)
  PF_HOST_DEVICE V of_weight() const { return -gamma * (z < T(0) ? less : more); }
  PF_HOST_DEVICE void keep(V&, V&) const {}
  // ln(1 / (1 + e^-z) + eps), eps small
  PF_HOST_DEVICE static V log_p(V z, V odds, T eps) {
    const V log_p = (z < T(0) ? z : V{}) - log_of_1_and_more(odds) + eps;
    return log_p > T(0) ? V{} : log_p;
  }
};

template <typename T>
struct FocalFactors {
  T gamma, eps, least_likely;
  T object, background;  // of the weights of such pixels
  T scale, most;         // of weights that are cut

  FocalFactors(const Mask& mask, double factor, double scale)
      : gamma(T(mask.gamma)),
        eps(focal_eps<T>(mask.eps)),
        least_likely(LikelyPixels<T>::least(mask.eps)),
        object(T(mask.alpha * factor)),
        background(T((1 - mask.alpha) * factor)),
        scale(T(scale)),
        most(T(mask.max_mult)) {}
};

// A run of pixels.
template <int exponent, typename S, typename T = Accumulation<S>>
class FocalRun {
  using V = Vector<T>;

 public:
  FocalRun(const S* logits, const std::int64_t* labels, const FocalFactors<T>& of)
      : logits_(logits), labels_(labels), of_(of) {
    decltype(V{} < V{}) unlikely{};
    for (std::int64_t i = 0; i < run; ++i) {
      towards_[i] = labels_of(i).towards(loaded(logits + i * lanes<T>, lanes<T>, T(0)));
      unlikely |= ~(towards_[i] >= of.least_likely);  // NaN is
    }
    likely_ = !any<T>(unlikely);
    with_pixels([&](auto kind) {
      for (std::int64_t i = 0; i < run; ++i) odds_[i] = decltype(kind)::Pixels::odds(towards_[i]);
    });
  }

  // Adds up the weights, and how many pixels count.
  void weigh(FocalSums<T>& sums) const {
    V weights{}, counted{};
    with_pixels([&](auto kind) {
      for (std::int64_t i = 0; i < run; ++i) {
        const Labels<T> labels = labels_of(i);
        ask_for_next(i);
        weights += labels.counting(focal_power<exponent>(pixels(kind, i).q(), of_.gamma));
        counted += labels.counting(broadcast(T(1)));
      }
    });
    sums.weights.add(weights);
    sums.counted.add(counted);
  }

  // Adds up factor weight log_p; cotangents = factor weight (d log_p + d weight / weight log_p). Unless weights are
  // cut, which takes their sum, adds up what `weigh` does.
  template <bool cut>
  void finish(T* cotangents, FocalSums<T>& sums) {
    V factors[run], slopes[run], of_logs[run], weights{}, counted{}, loss{};
    with_pixels([&](auto kind) {
      for (std::int64_t i = 0; i < run; ++i) {
        const Labels<T> labels = labels_of(i);
        ask_for_next(i);
        const auto pixel = pixels(kind, i);
        V weight = labels.counting(focal_power<exponent>(pixel.q(), of_.gamma)), of_weight = pixel.of_weight();
        if constexpr (!cut) {
          weights += weight;
          counted += labels.counting(broadcast(T(1)));
        } else {
          weight *= of_.scale;
          of_weight = weight >= of_.most ? V{} : of_weight;
          weight = weight >= of_.most ? broadcast(of_.most) : weight;
        }
        const V factor = labels.choose(broadcast(of_.object), broadcast(of_.background)) * weight;
        const V slope = labels.choose(factor, -factor);
        factors[i] = factor;
        slopes[i] = slope * pixel.of_log();
        of_logs[i] = slope * of_weight;
        pixel.keep(towards_[i], odds_[i]);
      }
      for (std::int64_t i = 0; i < run; ++i) {
        const V log_p = decltype(kind)::Pixels::log_p(towards_[i], odds_[i], of_.eps);
        loss = multiply_add(factors[i], log_p, loss);
        put(cotangents + i * lanes<T>, multiply_add(of_logs[i], log_p, slopes[i]));
      }
    });
    sums.weights.add(weights);
    sums.counted.add(counted);
    sums.loss.add(loss);
  }

 private:
  template <typename P>
  struct Kind {
    using Pixels = P;
  };

  // Calls body(Kind<what the pixels are>).
  template <typename Body>
  PF_HOST_DEVICE void with_pixels(Body body) const {
    likely_ ? body(Kind<LikelyPixels<T>>{}) : body(Kind<AnyPixels<T>>{});
  }
  template <typename P>
  PF_HOST_DEVICE P pixels(Kind<P>, std::int64_t i) const {
    return P(towards_[i], odds_[i], of_.gamma, of_.eps);
  }
  Labels<T> labels_of(std::int64_t i) const { return Labels<T>(labels_ + i * lanes<T>); }

  // Asks for the run after the next, a register at a time: the loops that read no memory would leave it idle.
  void ask_for_next(std::int64_t i) const {
    const std::int64_t at = 2 * run_size<T> + i * lanes<T>;
    __builtin_prefetch(logits_ + at);
    for (std::int64_t k = 0; k < lanes<T>; k += 8) __builtin_prefetch(labels_ + at + k);
  }

  const S* logits_;
  const std::int64_t* labels_;
  const FocalFactors<T>& of_;
  bool likely_;
  V towards_[run], odds_[run];
};

// Calls body(logits, labels, cotangents) for every run of a picture's pixels. Ignored ones make the last one whole.
template <typename S, typename Body>
void each_run_of(const Mask& mask, const Body& body) {
  using T = Accumulation<S>;
  const S* logits = static_cast<const S*>(mask.logits);
  T* cotangents = static_cast<T*>(mask.cotangents);
  std::int64_t i = 0;
  for (; i + run_size<T> <= mask.pixels; i += run_size<T>) body(logits + i, mask.labels + i, cotangents + i);
  if (i == mask.pixels) return;
  S last_logits[run_size<T>] = {};
  std::int64_t last_labels[run_size<T>];
  T last_cotangents[run_size<T>];
  std::copy(logits + i, logits + mask.pixels, last_logits);
  std::fill(std::copy(mask.labels + i, mask.labels + mask.pixels, last_labels), last_labels + run_size<T>, -1);
  body(last_logits, last_labels, last_cotangents);
  std::copy(last_cotangents, last_cotangents + (mask.pixels - i), cotangents + i);
}

template <int exponent, typename S, typename T = Accumulation<S>>
double focal_loss_at_once(const Mask& mask) {
  FocalSums<T> sums;
  const FocalFactors<T> of(mask, lifted<double>, 1);
  each_run_of<S>(mask, [&](const S* logits, const std::int64_t* labels, T* cotangents) {
    FocalRun<exponent, S>(logits, labels, of).template finish<false>(cotangents, sums);
  });
  const double count = sums.counted.total();
  const double mean = -count / (sums.weights.total() + mask.eps) / (count > 0 ? count : 1) / lifted<double>;
  const T factor = T(mean);
  T* __restrict cotangents = static_cast<T*>(mask.cotangents);
#pragma omp simd
  for (std::int64_t i = 0; i < mask.pixels; ++i) cotangents[i] *= factor;
  return sums.loss.total() * mean;
}

template <int exponent, typename S, typename T = Accumulation<S>>
double focal_loss_of_cut_weights(const Mask& mask) {
  FocalSums<T> sums, cut;
  const FocalFactors<T> alone(mask, 1, 1);
  each_run_of<S>(mask, [&](const S* logits, const std::int64_t* labels, T*) {
    FocalRun<exponent, S>(logits, labels, alone).weigh(sums);
  });
  const double count = sums.counted.total(), share = -1 / (count > 0 ? count : 1);
  const FocalFactors<T> of(mask, share, count / (sums.weights.total() + mask.eps));
  each_run_of<S>(mask, [&](const S* logits, const std::int64_t* labels, T* cotangents) {
    FocalRun<exponent, S>(logits, labels, of).template finish<true>(cotangents, cut);
  });
  return cut.loss.total();
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
