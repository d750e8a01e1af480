// The kernels of gram_out and project_.
#pragma once

#include "dispatch.h"

namespace prograd::cpu {

struct ProjectionKernels {
  // sums: ||a||^2, <a,b>, ||b||^2 of n elements
  void (*gram)(const void* a, const void* b, std::int64_t n, double* sums);

  // a = alpha a + beta b
  void (*project)(void* a, const void* b, std::int64_t n, double alpha, double beta);
};

}  // namespace prograd::cpu
