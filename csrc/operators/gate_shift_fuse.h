// What the operators of gate, shift and fuse ask of their arguments.
#pragma once

#include "../common/arguments.h"
#include "../common/operand.h"

namespace prograd {

// The sizes of a call: x (clips, frames, channels, height, width), of whose channels the first 2·half are used.
struct Clips {
  int64_t clips, frames, channels, half, positions;
};

// x as `first` is; of_channels (clips, parts, half, frames).
inline Clips check_clips(c10::DeviceType type, const char* name, const at::Tensor& first, const at::Tensor& gate,
                         const char* name_of_channels, const at::Tensor& of_channels, int64_t parts) {
  const Arguments arguments(name, first, type);
  arguments.dimensions(name, first, 5);
  const at::IntArrayRef x = first.sizes();
  const at::ScalarType dtype = first.scalar_type();
  arguments.whole(name, first, dtype, x);
  arguments.whole("gate", gate, dtype, {x[0], 2, x[1], x[3], x[4]});
  TORCH_CHECK_VALUE(x[1] > 0, name, ": expected one frame or more, got shape ", x, ".");
  arguments.dimensions(name_of_channels, of_channels, 4);
  const int64_t half = of_channels.size(2);
  TORCH_CHECK_VALUE(half > 0 && half % 2 == 0 && 2 * half <= x[2], "used: expected a multiple of 4 from 4 to ", x[2],
                    " channels, got ", 2 * half, ".");
  arguments.whole(name_of_channels, of_channels, accumulation_dtype(dtype), {x[0], parts, half, x[1]});
  return {x[0], x[1], x[2], half, x[3] * x[4]};
}

inline Clips check_gate_shift_means(c10::DeviceType type, const at::Tensor& x, const at::Tensor& gate,
                                    const at::Tensor& means) {
  return check_clips(type, "x", x, gate, "means", means, 4);
}

inline Clips check_gate_shift_fuse(c10::DeviceType type, const at::Tensor& x, const at::Tensor& gate,
                                   const at::Tensor& phi, const at::Tensor& out) {
  const Clips clips = check_clips(type, "x", x, gate, "phi", phi, 2);
  Arguments("x", x, type).whole("out", out, x.scalar_type(), x.sizes());
  return clips;
}

inline Clips check_gate_shift_slopes(c10::DeviceType type, const at::Tensor& gradient, const at::Tensor& x,
                                     const at::Tensor& gate, const at::Tensor& d_phi) {
  const Clips clips = check_clips(type, "gradient", gradient, gate, "d_phi", d_phi, 2);
  Arguments("gradient", gradient, type).whole("x", x, gradient.scalar_type(), gradient.sizes());
  return clips;
}

inline Clips check_gate_shift_fuse_backward(c10::DeviceType type, const at::Tensor& gradient, const at::Tensor& x,
                                            const at::Tensor& gate, const at::Tensor& phi, const at::Tensor& d_means,
                                            const at::Tensor& d_x, const at::Tensor& d_gate) {
  const Clips clips = check_clips(type, "gradient", gradient, gate, "phi", phi, 2);
  const Arguments arguments("gradient", gradient, type);
  const at::ScalarType dtype = gradient.scalar_type();
  arguments.whole("x", x, dtype, gradient.sizes());
  arguments.whole("d_means", d_means, phi.scalar_type(), {clips.clips, 4, clips.half, clips.frames});
  arguments.whole("d_x", d_x, dtype, gradient.sizes());
  arguments.whole("d_gate", d_gate, dtype, gate.sizes());
  return clips;
}

}  // namespace prograd
