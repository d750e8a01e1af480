// What affine_shift_out and affine_shift_backward_out ask of their arguments.
#pragma once

#include "../common/arguments.h"
#include "../common/operand.h"

namespace prograd {

// A contiguous map (B, C, *positions) whose channels move in groups along axes, as `first` is.
inline Arguments check_shift(c10::DeviceType type, const char* name, const at::Tensor& first, at::IntArrayRef groups,
                             at::IntArrayRef axes) {
  const Arguments arguments(name, first, type);
  const int64_t positions = first.dim() - 2;
  TORCH_CHECK_VALUE(positions >= 1 && positions <= 3, name, ": expected 3 to 5 dimensions, got shape ", first.sizes(),
                    ".");
  arguments.whole(name, first, first.scalar_type(), first.sizes());
  int64_t left = first.size(1);
  bool fit = true;
  for (const int64_t size : groups) {
    fit = fit && size >= 0 && size <= left;
    left -= fit ? size : 0;
  }
  TORCH_CHECK_VALUE(fit && left == 0, "groups: expected sizes that add up to ", first.size(1), " channels, got ",
                    groups, ".");
  TORCH_CHECK_VALUE(axes.size() == groups.size(), "axes: expected ", groups.size(), ", one for each group, got ",
                    axes.size(), ".");
  for (const int64_t axis : axes) {
    TORCH_CHECK_VALUE(axis >= -positions && axis <= positions, "axes: expected -", positions, " ... ", positions,
                      " for shape ", first.sizes(), ", got ", axes, ".");
  }
  return arguments;
}

// How an axis moves a channel in memory: each position by `offset`, and what leaves its run of `period` is lost.
struct AxisShift {
  int64_t offset, period;
};

// Backwards for a gradient.
inline AxisShift shift_along(const at::Tensor& x, int64_t axis, bool back) {
  const int64_t number = axis < 0 ? -axis : axis;
  if (number == 0) return {0, x.numel() / (x.size(0) * x.size(1))};
  const int64_t step = x.stride(1 + number);
  return {(axis < 0) != back ? -step : step, step * x.size(1 + number)};
}

inline void check_affine_shift(c10::DeviceType type, const at::Tensor& x, MaybeTensor scale, MaybeTensor bias,
                               at::IntArrayRef groups, at::IntArrayRef axes, const at::Tensor& out) {
  const Arguments arguments = check_shift(type, "x", x, groups, axes);
  const at::ScalarType dtype = x.scalar_type();
  if (scale) arguments.whole("scale", *scale, accumulation_dtype(dtype), x.sizes().slice(0, 2));
  if (bias) arguments.whole("bias", *bias, dtype, x.sizes());
  arguments.whole("out", out, dtype, x.sizes());
}

inline void check_affine_shift_backward(c10::DeviceType type, const at::Tensor& gradient, const at::Tensor& x,
                                        const at::Tensor& scale, at::IntArrayRef groups, at::IntArrayRef axes,
                                        const at::Tensor& d_x, const at::Tensor& d_scale) {
  const Arguments arguments = check_shift(type, "gradient", gradient, groups, axes);
  const at::ScalarType dtype = gradient.scalar_type();
  const at::IntArrayRef channels = gradient.sizes().slice(0, 2);
  arguments.whole("x", x, dtype, gradient.sizes());
  arguments.whole("scale", scale, accumulation_dtype(dtype), channels);
  arguments.whole("d_x", d_x, dtype, gradient.sizes());
  arguments.whole("d_scale", d_scale, accumulation_dtype(dtype), channels);
}

}  // namespace prograd
