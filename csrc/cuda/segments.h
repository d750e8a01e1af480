// The edges of a graph sorted by one of their ends, by PyTorch's stable sort: no value is read back.
#pragma once

#include <ATen/ATen.h>

#include "edges.h"

namespace prograd::cuda {

class SortedEnds {
 public:
  SortedEnds(const at::Tensor& ends, int64_t nodes) {
    at::Tensor sorted;
    std::tie(sorted, order_) = ends.sort(/*stable=*/true, /*dim=*/0, /*descending=*/false);
    starts_ = at::searchsorted(sorted, at::arange(nodes + 1, ends.options()));
  }

  Segments segments() const { return {order_.const_data_ptr<int64_t>(), starts_.const_data_ptr<int64_t>()}; }

 private:
  at::Tensor order_, starts_;
};

}  // namespace prograd::cuda
