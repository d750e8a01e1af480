// The launchers of gelu_out and gelu_backward_; see launch.h.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../common/types.h"

namespace prograd::cuda {

void gelu(Storage storage, const void* x, int64_t size, GeluApproximation approximation, void* out, void* stream);

// gradient: (cotangents, size).
void gelu_backward(Storage storage, void* gradient, int64_t cotangents, const void* x, int64_t size,
                   GeluApproximation approximation, void* stream);

}  // namespace prograd::cuda
