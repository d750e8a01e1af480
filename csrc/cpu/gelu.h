// The kernels of gelu_out and gelu_backward_.
#pragma once

#include "dispatch.h"

namespace prograd::cpu {

struct GeluKernels {
  // out = GELU(x) of n elements, which may lie in the same place
  void (*forward)(const void* x, void* out, std::int64_t n, GeluApproximation);

  // `count` gradients of n elements each, `stride` elements apart, times GELU'(x)
  void (*backward)(const void* x, void* gradients, std::int64_t n, std::int64_t count, std::int64_t stride,
                   GeluApproximation);
};

}  // namespace prograd::cpu
