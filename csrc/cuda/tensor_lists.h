// Lists of tensors, as the launchers of the projection and of the updates take them; see launch.h.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../common/types.h"

namespace prograd::cuda {

// What a kernel has of one parameter. An operator reads the fields that it needs.
struct Operands {
  const void *task, *general;  // a and b
  void* param;                 // for project_out its result
  void* state[3];              // AdamW: exp_avg, exp_avg_sq, max_exp_avg_sq or null. SGD: momentum buffer or null
  float* step;
  int64_t unit_size;  // elements of each unit
};

// One parameter.
struct Tensor : Operands {
  int64_t units;  // conflict tests inside this tensor: its rows with Scope::row, else 1
};

// For all operators on lists.
size_t tensors_workspace(Storage storage, const Tensor* tensors, int count, Scope scope);

}  // namespace prograd::cuda
