// The projected gradient, element by element. Included by the kernels alone.
#pragma once

#include "../../formulas/projection.h"
#include "storage.h"

namespace prograd::cpu {
namespace {

// g = alpha a + beta b; without a conflict b is not read.
template <bool conflict, typename T, typename S>
PF_HOST_DEVICE T gradient(const S* a, const S* b, std::int64_t i, T alpha, T beta) {
  if constexpr (conflict) {
    return projected(load(a[i]), load(b[i]), alpha, beta);
  } else {
    return alpha * load(a[i]);
  }
}

}  // namespace
}  // namespace prograd::cpu
