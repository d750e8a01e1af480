// One row of the losses and predictions that are averaged over samples.
#include "../samples.h"

#include "../../formulas/samples.h"
#include "stream.h"
#include "sums.h"
#include "table.h"

namespace prograd::cpu {
namespace {

// Maximum of a row of logits, and the sum of exp relative to it.
template <typename T>
struct SoftmaxSums {
  T max = std::numeric_limits<T>::lowest(), sum = 0;  // lowest: keeps -inf - (-inf) out

  template <typename S>
  static SoftmaxSums of(const S* logits, std::int64_t classes) {
    T max = std::numeric_limits<T>::lowest();
#pragma omp simd reduction(max : max)
    for (std::int64_t c = 0; c < classes; ++c) {
      const T x = load(logits[c]);
      max = x > max ? x : max;
    }
    double total = 0;
    each_run<T>(classes, [&](std::int64_t begin, std::int64_t end) {
      T sum = 0;
#pragma omp simd reduction(+ : sum)
      for (std::int64_t c = begin; c < end; ++c) sum += exp(load(logits[c]) - max);
      total += sum;
    });
    return {max, T(total)};
  }

  T log_prob(T logit) const { return logit - max - log(sum); }
};

// The loss of a row, -log of the mean of the samples' softmax(z_s)[label]; writes its gradient in all samples.
template <typename S>
double sampled_cross_entropy_row(const SampledRow& row, std::int64_t label, double weight) {
  using T = Accumulation<S>;
  const auto logits = [&](std::int64_t s) { return static_cast<const S*>(row.logits) + s * row.sample_stride; };
  auto* sums = static_cast<SoftmaxSums<T>*>(row.scratch);
  T* at_label = reinterpret_cast<T*>(sums + row.samples);

  T top = -std::numeric_limits<T>::infinity();
  for (std::int64_t s = 0; s < row.samples; ++s) {
    sums[s] = SoftmaxSums<T>::of(logits(s), row.classes);
    at_label[s] = sums[s].log_prob(load(logits(s)[label]));
    top = larger(at_label[s], top);
  }
  T total = 0;
  for (std::int64_t s = 0; s < row.samples; ++s) total += sample_share(at_label[s], top);

  for (std::int64_t s = 0; s < row.samples; ++s) {
    const S* z = logits(s);
    T* to = static_cast<T*>(row.cotangents) + s * row.sample_stride;
    const T share = T(weight) * sample_share(at_label[s], top) / total;
    const T factor = share / sums[s].sum, max = sums[s].max, label_exp = exp(load(z[label]) - max);
    Writer<T>(to, row.classes, row.stream).all([&](std::int64_t c, std::int64_t width) {
      return exp(loaded(z + c, width, T(0)) - max) * factor;
    });
    store(to[label], label_exp * factor - share);
  }
  return -(top + log(total / T(row.samples)));
}

// Log of the mean of the samples' softmax, class by class.
template <typename S>
void sampled_log_probs_row(const SampledRow& row, void* log_probs) {
  using T = Accumulation<S>;
  constexpr std::int64_t block = 256;  // classes whose maxima and sums stay in the first-level cache
  const auto logits = [&](std::int64_t s) { return static_cast<const S*>(row.logits) + s * row.sample_stride; };
  T* log_sum = static_cast<T*>(row.scratch);  // of exp of each sample's logits
  for (std::int64_t s = 0; s < row.samples; ++s) {
    const auto sums = SoftmaxSums<T>::of(logits(s), row.classes);
    log_sum[s] = sums.max + log(sums.sum);
  }
  for (std::int64_t begin = 0; begin < row.classes; begin += block) {
    const std::int64_t n = row.classes - begin < block ? row.classes - begin : block;
    T top[block], sum[block];
    for (std::int64_t c = 0; c < n; ++c) top[c] = std::numeric_limits<T>::lowest(), sum[c] = 0;
    for (std::int64_t s = 0; s < row.samples; ++s) {
      const S* z = logits(s) + begin;
#pragma omp simd
      for (std::int64_t c = 0; c < n; ++c) top[c] = larger(T(load(z[c]) - log_sum[s]), top[c]);
    }
    for (std::int64_t s = 0; s < row.samples; ++s) {
      const S* z = logits(s) + begin;
#pragma omp simd
      for (std::int64_t c = 0; c < n; ++c) sum[c] += exp(load(z[c]) - log_sum[s] - top[c]);
    }
    T* to = static_cast<T*>(log_probs) + begin;
#pragma omp simd
    for (std::int64_t c = 0; c < n; ++c) to[c] = top[c] + log(sum[c] / T(row.samples));
  }
}

template <typename S>
struct Samples {
  static constexpr SampleKernels kernels{sampled_cross_entropy_row<S>, sampled_log_probs_row<S>};
};

}  // namespace

template <>
const ByStorage<SampleKernels> Compiled<SampleKernels>::PF_ISA = by_storage<Samples>();

}  // namespace prograd::cpu
