// GELU and its backward on contiguous memory.
#include "../gelu.h"

#include "../../formulas/gelu.h"
#include "table.h"

namespace prograd::cpu {
namespace {

template <typename S>
struct Gelu {
  static void forward(const void* from, void* to, std::int64_t n, GeluApproximation approximation) {
    const S* x = static_cast<const S*>(from);
    S* out = static_cast<S*>(to);
    with_approximation(approximation, [&](auto constant) {
#pragma omp simd
      for (std::int64_t i = 0; i < n; ++i) store(out[i], gelu<decltype(constant)::value>(load(x[i])));
    });
  }

  static void backward(const void* from, void* to, std::int64_t n, std::int64_t count, std::int64_t stride,
                       GeluApproximation approximation) {
    const S* x = static_cast<const S*>(from);
    S* gradients = static_cast<S*>(to);
    constexpr std::int64_t block = 512;  // the derivative is computed once for all gradients, in the first-level cache
    Accumulation<S> derivative[block];
    with_approximation(approximation, [&](auto constant) {
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

  static constexpr GeluKernels kernels{forward, backward};
};

}  // namespace

template <>
const ByStorage<GeluKernels> Compiled<GeluKernels>::PF_ISA = by_storage<Gelu>();

}  // namespace prograd::cpu
