// Steps of AdamW and SGD on contiguous memory.
#include "../updates.h"

#include "projected.h"
#include "table.h"

namespace prograd::cpu {
namespace {

template <typename S, typename M>
void adamw_step(const AdamWTensors& tensors, std::int64_t n, const AdamW<double>& step_, double alpha_, double beta_) {
  using T = Accumulation<S>;
  S* __restrict p = static_cast<S*>(tensors.param);
  const S* __restrict a = static_cast<const S*>(tensors.task);
  const S* __restrict b = static_cast<const S*>(tensors.general);
  M* __restrict m = static_cast<M*>(tensors.exp_avg);
  M* __restrict v = static_cast<M*>(tensors.exp_avg_sq);
  M* __restrict largest = static_cast<M*>(tensors.max_exp_avg_sq);
  const AdamW<T> step = step_.as<T>();
  const T alpha = T(alpha_), beta = T(beta_);
  with_flag(beta != T(0), [&](auto conflict) {
    with_flag(largest != nullptr, [&](auto amsgrad) {
#pragma omp simd
      for (std::int64_t i = 0; i < n; ++i) {
        const T g = gradient<conflict()>(a, b, i, alpha, beta);
        const T exp_avg = step.exp_avg(load(m[i]), g);
        T exp_avg_sq = step.exp_avg_sq(load(v[i]), g);
        store(m[i], exp_avg);
        store(v[i], exp_avg_sq);
        if constexpr (amsgrad()) {
          exp_avg_sq = larger(load(largest[i]), exp_avg_sq);
          store(largest[i], exp_avg_sq);
        }
        store(p[i], step.parameter(load(p[i]), exp_avg, exp_avg_sq));
      }
    });
  });
}

template <typename S, typename M>
void sgd_step(const SGDTensors& tensors, std::int64_t n, const SGD<double>& step_, double alpha_, double beta_) {
  using T = Accumulation<S>;
  S* __restrict p = static_cast<S*>(tensors.param);
  const S* __restrict a = static_cast<const S*>(tensors.task);
  const S* __restrict b = static_cast<const S*>(tensors.general);
  M* __restrict m = static_cast<M*>(tensors.momentum_buffer);
  const SGD<T> step = step_.as<T>();
  const T alpha = T(alpha_), beta = T(beta_);
  with_flag(beta != T(0), [&](auto conflict) {
    with_flag(m != nullptr, [&](auto momentum) {
#pragma omp simd
      for (std::int64_t i = 0; i < n; ++i) {
        T direction = step.decayed(load(p[i]), gradient<conflict()>(a, b, i, alpha, beta));
        if constexpr (momentum()) {
          const T buffer = step.buffer(load(m[i]), direction);
          store(m[i], buffer);
          direction = step.direction(buffer, direction);
        }
        store(p[i], step.parameter(load(p[i]), direction));
      }
    });
  });
}

template <typename S>
struct Updates {
  static void adamw(bool wide_moments, const AdamWTensors& tensors, std::int64_t n, const AdamW<double>& step,
                    double alpha, double beta) {
    (wide_moments ? adamw_step<S, Accumulation<S>> : adamw_step<S, S>)(tensors, n, step, alpha, beta);
  }

  static void sgd(bool wide_moments, const SGDTensors& tensors, std::int64_t n, const SGD<double>& step, double alpha,
                  double beta) {
    (wide_moments ? sgd_step<S, Accumulation<S>> : sgd_step<S, S>)(tensors, n, step, alpha, beta);
  }

  static constexpr UpdateKernels kernels{adamw, sgd};
};

}  // namespace

template <>
const ByStorage<UpdateKernels> Compiled<UpdateKernels>::PF_ISA = by_storage<Updates>();

}  // namespace prograd::cpu
