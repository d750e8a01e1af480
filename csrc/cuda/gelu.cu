// GELU and its backward, a pack for each thread.
#include "gelu.h"

#include "../formulas/gelu.h"
#include "storage.cuh"
#include "vector.cuh"

namespace prograd::cuda {

constexpr int kGeluThreads = 256;

template <typename T>
__global__ void __launch_bounds__(kGeluThreads)
    gelu_kernel(const T* x, int64_t size, GeluApproximation approximation, T* out, bool aligned) {
  constexpr int N = kVector<T>;
  const int64_t begin = (int64_t(blockIdx.x) * blockDim.x + threadIdx.x) * N;
  const int valid = size - begin < N ? int(size - begin) : N;
  if (valid <= 0) return;
  Accumulation<T> values[N];
  load(values, x + begin, valid, aligned);
  with_approximation(approximation, [&](auto constant) {
#pragma unroll
    for (int i = 0; i < N; ++i) values[i] = prograd::gelu<decltype(constant)::value>(values[i]);
  });
  store(out + begin, values, valid, aligned);
}

// gradient (cotangents, size); x is read once for all of them.
template <typename T>
__global__ void __launch_bounds__(kGeluThreads)
    gelu_backward_kernel(T* gradient, int64_t cotangents, const T* x, int64_t size, GeluApproximation approximation,
                         bool aligned) {
  constexpr int N = kVector<T>;
  const int64_t begin = (int64_t(blockIdx.x) * blockDim.x + threadIdx.x) * N;
  const int valid = size - begin < N ? int(size - begin) : N;
  if (valid <= 0) return;
  Accumulation<T> slopes[N];
  load(slopes, x + begin, valid, aligned);
  with_approximation(approximation, [&](auto constant) {
#pragma unroll
    for (int i = 0; i < N; ++i) slopes[i] = gelu_derivative<decltype(constant)::value>(slopes[i]);
  });
  for (int64_t k = 0; k < cotangents; ++k) {
    T* here = gradient + k * size + begin;
    Accumulation<T> values[N];
    load(values, here, valid, aligned);
#pragma unroll
    for (int i = 0; i < N; ++i) values[i] *= slopes[i];
    store(here, values, valid, aligned);
  }
}

inline int64_t gelu_blocks(int64_t size, int vector) {
  return (size + int64_t(vector) * kGeluThreads - 1) / (int64_t(vector) * kGeluThreads);
}

template <typename T>
void launch_gelu(const T* x, int64_t size, GeluApproximation approximation, T* out, void* stream) {
  if (size == 0) return;
  launch(gelu_kernel<T>, gelu_blocks(size, kVector<T>), kGeluThreads, 0, false, stream, x, size, approximation, out,
         is_aligned(x) && is_aligned(out));
}

template <typename T>
void launch_gelu_backward(T* gradient, int64_t cotangents, const T* x, int64_t size, GeluApproximation approximation,
                          void* stream) {
  if (size == 0 || cotangents == 0) return;
  const bool aligned = is_aligned(x) && is_aligned(gradient) && (cotangents == 1 || size % kVector<T> == 0);
  launch(gelu_backward_kernel<T>, gelu_blocks(size, kVector<T>), kGeluThreads, 0, false, stream, gradient, cotangents,
         x, size, approximation, aligned);
}

// ---- the operators

void gelu(Storage storage, const void* x, int64_t size, GeluApproximation approximation, void* out, void* stream) {
  with_storage(storage, [&](auto type) {
    using T = typename decltype(type)::type;
    launch_gelu(static_cast<const T*>(x), size, approximation, static_cast<T*>(out), stream);
  });
}

void gelu_backward(Storage storage, void* gradient, int64_t cotangents, const void* x, int64_t size,
                   GeluApproximation approximation, void* stream) {
  with_storage(storage, [&](auto type) {
    using T = typename decltype(type)::type;
    launch_gelu_backward(static_cast<T*>(gradient), cotangents, static_cast<const T*>(x), size, approximation, stream);
  });
}

}  // namespace prograd::cuda
