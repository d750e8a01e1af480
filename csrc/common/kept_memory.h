// Memory of large results on the CPU that is kept for the next ones: pages that nobody has touched yet take several
// times as long as what is written to them.
#pragma once

#include <ATen/core/Tensor.h>

namespace prograd {

// at::empty. Memory of 16 MiB or more comes back when the last tensor, view, graph or array that holds it is gone, and
// not before: it has one holder at a time, as from any allocator. Three pieces wait at most: a result and the gradients
// of two inputs, which are of one size and there at once, all come back.
at::Tensor empty_in_kept_memory(at::IntArrayRef sizes, const at::TensorOptions& options);

// Gives what waits back to the system.
void release_kept_memory();

}  // namespace prograd
