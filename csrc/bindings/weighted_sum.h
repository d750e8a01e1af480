// What the backward of loss operators makes of their cotangents, for plain tensors on the CPU.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <vector>

namespace prograd {

// What a gradient () or (B,) is multiplied with as, to (B, ...).
at::Tensor factor_of(const at::Tensor& gradient);

// Σ gradients[k]·cotangents[k], of one or two losses, in kept memory and as few passes as can be: gradients () or (B,),
// cotangents (B, ...). Nothing where some tensor is not plain.
std::optional<at::Tensor> weighted_sum(const std::vector<at::Tensor>& gradients,
                                       const std::vector<at::Tensor>& cotangents);

}  // namespace prograd
