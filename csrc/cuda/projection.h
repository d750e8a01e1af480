// The launchers of gram_out and project_; see launch.h.
#pragma once

#include <cstddef>
#include <cstdint>

#include "tensor_lists.h"

namespace prograd::cuda {

// How an operator comes by the coefficients of its projection. coefficients (U, 2): given, in the arithmetic type.
// Null: ProGrad's, from entries (U, 3), which are computed and written.
struct Projection {
  Scope scope;
  const void* coefficients;
  void* entries;
  double lambda, noise_floor;
  const float* found_inf;  // above 0: nothing but entries is written; null for never
  bool maximize;
};

void gram(Storage storage, const Tensor* tensors, int count, Scope scope, void* entries, void* workspace, void* stream);

void project(Storage storage, const Tensor* tensors, int count, Scope scope, const void* coefficients, void* workspace,
             void* stream);

}  // namespace prograd::cuda
