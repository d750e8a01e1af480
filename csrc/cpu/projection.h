// The kernels of gram_out and project_out.
#pragma once

#include "dispatch.h"

namespace prograd::cpu {

struct ProjectionKernels {
  // sums: ||a||^2, <a,b>, ||b||^2 of n elements
  void (*gram)(const void* a, const void* b, std::int64_t n, double* sums);

  // g = alpha a + beta b, bit for bit a where that is all. g may be a; past the caches if nobody reads g soon.
  void (*project)(void* g, const void* a, const void* b, std::int64_t n, double alpha, double beta, bool past_caches);
};

}  // namespace prograd::cpu
