// dual_loss and its derivative for plain tensors in eager mode, without Python.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <utility>

namespace prograd {

// (task, general) as prograd_fast/ops/gradients.py gives them to autograd, with what torch.library does there in Python
// done here: for a small batch that takes several times as long as the losses.
// Nothing where some argument is not as it should be, or not plain: the way through Python then says why, or copes.
std::optional<std::pair<at::Tensor, at::Tensor>> eager_dual_loss(const at::Tensor& student, const at::Tensor& teacher,
                                                                 const at::Tensor& labels,
                                                                 const std::optional<at::Tensor>& teacher_offset,
                                                                 const std::optional<at::Tensor>& task_weight,
                                                                 const std::optional<at::Tensor>& general_weight,
                                                                 double temperature, bool soft_ce, int64_t reduction);

}  // namespace prograd
