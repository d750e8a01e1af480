// Steps of AdamW and SGD on lists of tensors, with the projected gradient.
#include "updates.h"

#include "../formulas/updates.h"
#include "projection.cuh"
#include "storage.cuh"

namespace prograd::cuda {

__device__ inline double rate(const LearningRate& lr) { return lr.tensor ? double(*lr.tensor) : lr.value; }

// M: storage of the moments.
template <typename T, typename M>
struct AdamWRule {
  static constexpr bool kSteps = true;
  using Context = AdamW<Accumulation<T>>;
  AdamWSettings settings;

  // The two powers are made at the same time, by even and by odd lanes.
  __device__ Context context(const Operands& tensor) const {
    const double step = double(*tensor.step) + 1;
    const double power = ::pow(threadIdx.x % 2 ? settings.beta2 : settings.beta1, step);
    const double power1 = __shfl_sync(kFullMask, power, 0), power2 = __shfl_sync(kFullMask, power, 1);
    return Context::of_powers(power1, power2, rate(settings.lr), settings.beta1, settings.beta2, settings.eps,
                              settings.weight_decay);
  }

  __device__ __forceinline__ void apply(const Context& rule, const Operands& tensor, int64_t at, int valid,
                                        bool aligned, const Accumulation<T> (&g)[kVector<T>]) const {
    constexpr int N = kVector<T>;
    T* param = static_cast<T*>(tensor.param) + at;
    M* exp_avg = static_cast<M*>(tensor.state[0]) + at;
    M* exp_avg_sq = static_cast<M*>(tensor.state[1]) + at;
    M* max_exp_avg_sq = static_cast<M*>(tensor.state[2]) + at;
    Accumulation<T> p[N], m[N], v[N], largest[N];
    load(p, param, valid, aligned);
    load(m, exp_avg, valid, aligned);
    load(v, exp_avg_sq, valid, aligned);
#pragma unroll
    for (int i = 0; i < N; ++i) {
      m[i] = rule.exp_avg(m[i], g[i]);
      v[i] = rule.exp_avg_sq(v[i], g[i]);
    }
    store(exp_avg, m, valid, aligned);
    store(exp_avg_sq, v, valid, aligned);
    if (tensor.state[2]) {  // amsgrad
      load(largest, max_exp_avg_sq, valid, aligned);
#pragma unroll
      for (int i = 0; i < N; ++i) v[i] = larger(v[i], largest[i]);
      store(max_exp_avg_sq, v, valid, aligned);
    }
#pragma unroll
    for (int i = 0; i < N; ++i) p[i] = rule.parameter(p[i], m[i], v[i]);
    store(param, p, valid, aligned);
  }
};

template <typename T, typename M>
struct SGDRule {
  static constexpr bool kSteps = false;
  using Context = SGD<Accumulation<T>>;
  SGDSettings settings;

  __device__ Context context(const Operands&) const {
    using A = Accumulation<T>;
    return {A(rate(settings.lr)),     A(settings.momentum), A(1 - settings.dampening),
            A(settings.weight_decay), settings.nesterov,    settings.first};
  }

  __device__ __forceinline__ void apply(const Context& rule, const Operands& tensor, int64_t at, int valid,
                                        bool aligned, const Accumulation<T> (&g)[kVector<T>]) const {
    constexpr int N = kVector<T>;
    T* param = static_cast<T*>(tensor.param) + at;
    M* buffer = static_cast<M*>(tensor.state[0]) + at;
    Accumulation<T> p[N], direction[N], m[N] = {};
    load(p, param, valid, aligned);
#pragma unroll
    for (int i = 0; i < N; ++i) direction[i] = rule.decayed(p[i], g[i]);
    if (tensor.state[0]) {
      if (!rule.first) load(m, buffer, valid, aligned);
#pragma unroll
      for (int i = 0; i < N; ++i) {
        m[i] = rule.buffer(m[i], direction[i]);
        direction[i] = rule.direction(m[i], direction[i]);
      }
      store(buffer, m, valid, aligned);
    }
#pragma unroll
    for (int i = 0; i < N; ++i) p[i] = rule.parameter(p[i], direction[i]);
    store(param, p, valid, aligned);
  }
};

// ---- the operators

// Calls function(Type<T>{}, Type<M>{}) for the storage of the parameters and that of the moments.
template <typename Function>
void with_storages(Storage storage, Storage states, Function function) {
  with_storage(storage, [&](auto type) {
    using T = typename decltype(type)::type;
    if (states == storage) return function(type, type);
    if constexpr (sizeof(T) == 2) {
      if (states == Storage::float32) return function(type, Type<float>{});
    }
    throw std::invalid_argument("moments: expected the dtype of the parameters, or float32 for 16-bit parameters");
  });
}

void adamw(Storage storage, Storage states, const Tensor* tensors, int count, const Projection& projection,
           const AdamWSettings& settings, void* workspace, void* stream) {
  with_storages(storage, states, [&](auto type, auto state) {
    using T = typename decltype(type)::type;
    using M = typename decltype(state)::type;
    update<T>(tensors, count, projection, AdamWRule<T, M>{settings}, workspace, stream);
  });
}

void sgd(Storage storage, Storage states, const Tensor* tensors, int count, const Projection& projection,
         const SGDSettings& settings, void* workspace, void* stream) {
  with_storages(storage, states, [&](auto type, auto state) {
    using T = typename decltype(type)::type;
    using M = typename decltype(state)::type;
    update<T>(tensors, count, projection, SGDRule<T, M>{settings}, workspace, stream);
  });
}

}  // namespace prograd::cuda
