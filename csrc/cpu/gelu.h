// GELU on contiguous memory. Included by kernels.cpp alone.
#pragma once

#include "../transformer.h"
#include "kernels.h"
#include "storage.h"

namespace prograd {
namespace {

template <typename S>
void gelu_forward(const S* x, S* out, std::int64_t n, Approximate approximate) {
  with_approximation(approximate, [&](auto constant) {
#pragma omp simd
    for (std::int64_t i = 0; i < n; ++i) {
      store(out[i], gelu<decltype(constant)::value>(load(x[i])));
    }
  });
}

template <typename S>
void gelu_backward(const S* x, S* gradients, std::int64_t n, std::int64_t count, std::int64_t stride,
                   Approximate approximate) {
  constexpr std::int64_t block = 512;  // the derivative is computed once for all gradients, in the first-level cache
  Accumulation<S> derivative[block];
  with_approximation(approximate, [&](auto constant) {
    for (std::int64_t begin = 0; begin < n; begin += block) {
      const std::int64_t size = begin + block < n ? block : n - begin;
#pragma omp simd
      for (std::int64_t i = 0; i < size; ++i) {
        derivative[i] = gelu_derivative<decltype(constant)::value>(load(x[begin + i]));
      }
      for (std::int64_t k = 0; k < count; ++k) {
        S* gradient = gradients + k * stride + begin;
#pragma omp simd
        for (std::int64_t i = 0; i < size; ++i) store(gradient[i], load(gradient[i]) * derivative[i]);
      }
    }
  });
}

}  // namespace
}  // namespace prograd
