// Room for what the loss operators write.
#pragma once

#include <ATen/ATen.h>

#include <cstring>

#include "operators.h"

namespace prograd {

struct LossResults {
  at::Tensor losses;      // (2,), or (2, B) without reduction, in the accumulation dtype
  at::Tensor cotangents;  // (2, ...), as `like`
  at::Tensor correct;     // ()

  // first: one row per sample; like: what the losses are differentiated in
  LossResults(const at::Tensor& first, const at::Tensor& second, int64_t reduction, const at::Tensor& like) {
    const at::ScalarType widest = at::promote_types(first.scalar_type(), second.scalar_type());
    const auto options = like.options().dtype(widest == at::kDouble ? at::kDouble : at::kFloat);
    losses = reduction == none ? at::empty({2, first.size(0)}, options) : at::empty({2}, options);
    cotangents = at::empty({2, like.size(0), like.size(1)}, like.options());
    correct = at::empty({}, like.options().dtype(at::kLong));
  }

  // One of the losses in memory of its own, which results of an operator must have. On the CPU without two more calls
  // through the dispatcher, which take as long as a few rows.
  at::Tensor loss(int64_t i) const {
    if (!losses.is_cpu()) return losses[i].clone();
    const at::Tensor copy = at::empty(losses.sizes().slice(1), losses.options());
    const auto bytes = copy.nbytes();
    const char* from = static_cast<const char*>(losses.const_data_ptr());
    if (bytes) std::memcpy(copy.mutable_data_ptr(), from + i * bytes, bytes);
    return copy;
  }
};

}  // namespace prograd
