// The launchers of add_layer_norm_out and layer_norm_backward_; see launch.h.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../common/types.h"

namespace prograd::cuda {

// x, branch, total, normed: (rows, columns); weight, bias (columns,) and statistics (rows, 2) in the arithmetic type.
void add_layer_norm(Storage storage, const void* x, const void* branch, const void* weight, const void* bias,
                    double eps, int64_t rows, int64_t columns, void* total, void* normed, void* statistics,
                    void* stream);

// d_total, d_normed: (cotangents, rows, columns).
void layer_norm_backward(Storage storage, void* d_total, const void* d_normed, const void* total,
                         const void* statistics, const void* weight, int64_t cotangents, int64_t rows, int64_t columns,
                         void* stream);

}  // namespace prograd::cuda
