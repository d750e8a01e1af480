// Gram sums, projection, AdamW and SGD on contiguous memory. Included by kernels.cpp alone.
#pragma once

#include <type_traits>

#include "kernels.h"
#include "storage.h"
#include "sums.h"

namespace prograd {
namespace {

template <typename S>
void gram(const S* a, const S* b, std::int64_t n, double task_scale, double* sums) {
  using T = Accumulation<S>;
  const T scale = T(task_scale);
  double all_aa = 0, all_ab = 0, all_bb = 0;
  each_run<T>(n, [&](std::int64_t begin, std::int64_t end) {
    T aa = 0, ab = 0, bb = 0;
#pragma omp simd reduction(+ : aa, ab, bb)
    for (std::int64_t i = begin; i < end; ++i) {
      const T x = load(a[i]) * scale, y = load(b[i]);
      aa = fused(x, x, aa);
      ab = fused(x, y, ab);
      bb = fused(y, y, bb);
    }
    all_aa += aa;
    all_ab += ab;
    all_bb += bb;
  });
  sums[0] = all_aa;
  sums[1] = all_ab;
  sums[2] = all_bb;
}

// Calls body(conflict) with std::true_type or std::false_type, so that what does not conflict does not read b.
template <typename Body>
inline __attribute__((always_inline)) void with_flag(bool flag, Body body) {
  flag ? body(std::true_type{}) : body(std::false_type{});
}

template <bool conflict, typename T, typename S>
inline __attribute__((always_inline)) T gradient(const S* a, const S* b, std::int64_t i, T alpha, T beta) {
  if constexpr (conflict) {
    return projected(load(a[i]), load(b[i]), alpha, beta);
  } else {
    return alpha * load(a[i]);
  }
}

template <typename S>
void project(S* a, const S* b, std::int64_t n, double alpha_, double beta_) {
  using T = Accumulation<S>;
  const T alpha = T(alpha_), beta = T(beta_);
  if (alpha == T(1) && beta == T(0)) return;
  with_flag(beta != T(0), [&](auto conflict) {
#pragma omp simd
    for (std::int64_t i = 0; i < n; ++i) store(a[i], gradient<conflict()>(a, b, i, alpha, beta));
  });
}

template <typename S, typename M>
void adamw(const Kernels::AdamWTensors& tensors, std::int64_t n, const AdamW<double>& step_, double alpha_,
           double beta_) {
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
void sgd(const Kernels::SGDTensors& tensors, std::int64_t n, const SGD<double>& step_, double alpha_, double beta_) {
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

}  // namespace
}  // namespace prograd
