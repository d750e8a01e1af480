// What gelu_out and gelu_backward_ ask of their arguments.
#pragma once

#include "../common/arguments.h"

namespace prograd {

inline void check_approximate(int64_t approximate) {
  TORCH_CHECK_VALUE(approximate >= 0 && approximate <= 2, "approximate: expected 0, 1 or 2, got ", approximate, ".");
}

inline void check_gelu(c10::DeviceType type, const at::Tensor& x, int64_t approximate, const at::Tensor& out) {
  const Arguments arguments("x", x, type);
  check_approximate(approximate);
  arguments.whole("x", x, x.scalar_type(), x.sizes());
  arguments.whole("out", out, x.scalar_type(), x.sizes());
}

inline void check_gelu_backward(c10::DeviceType type, const at::Tensor& gradient, const at::Tensor& x,
                                int64_t approximate) {
  const Arguments arguments("x", x, type);
  check_approximate(approximate);
  arguments.whole("x", x, x.scalar_type(), x.sizes());
  Arguments::defined("gradient", gradient);
  TORCH_CHECK_VALUE(gradient.dim() == x.dim() + 1, "gradient: expected ", x.dim() + 1, " dimensions, got ",
                    gradient.dim(), ".");
  c10::SmallVector<int64_t, 5> sizes(x.sizes());
  sizes.insert(sizes.begin(), gradient.size(0));
  arguments.whole("gradient", gradient, x.scalar_type(), sizes);
}

}  // namespace prograd
