// What add_layer_norm_out and layer_norm_backward_ ask of their arguments.
#pragma once

#include "../common/arguments.h"
#include "../common/operand.h"

namespace prograd {

inline void check_add_layer_norm(c10::DeviceType type, const at::Tensor& x, const at::Tensor& branch,
                                 const at::Tensor& weight, const at::Tensor& bias, const at::Tensor& total,
                                 const at::Tensor& normed, const at::Tensor& statistics) {
  const Arguments arguments("x", x, type);
  arguments.dimensions("x", x, 2);
  const at::ScalarType dtype = x.scalar_type();
  arguments.whole("x", x, dtype, x.sizes());
  arguments.whole("branch", branch, dtype, x.sizes());
  arguments.whole("total", total, dtype, x.sizes());
  arguments.whole("normed", normed, dtype, x.sizes());
  arguments.whole("weight", weight, accumulation_dtype(dtype), {x.size(1)});
  arguments.whole("bias", bias, accumulation_dtype(dtype), {x.size(1)});
  arguments.whole("statistics", statistics, accumulation_dtype(dtype), {x.size(0), 2});
}

inline void check_layer_norm_backward(c10::DeviceType type, const at::Tensor& d_total, const at::Tensor& d_normed,
                                      const at::Tensor& total, const at::Tensor& statistics, const at::Tensor& weight) {
  const Arguments arguments("d_total", d_total, type);
  arguments.dimensions("d_total", d_total, 3);
  const at::ScalarType dtype = d_total.scalar_type();
  const int64_t rows = d_total.size(1), width = d_total.size(2);
  arguments.whole("d_total", d_total, dtype, d_total.sizes());
  arguments.whole("d_normed", d_normed, dtype, d_total.sizes());
  arguments.whole("total", total, dtype, {rows, width});
  arguments.whole("statistics", statistics, accumulation_dtype(dtype), {rows, 2});
  arguments.whole("weight", weight, accumulation_dtype(dtype), {width});
}

}  // namespace prograd
