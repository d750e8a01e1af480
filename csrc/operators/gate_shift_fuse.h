// What the operators of gate, shift and fuse ask of their arguments.
#pragma once

#include "../common/arguments.h"
#include "../common/operand.h"

namespace prograd {

// The sizes of a call: x (clips, frames, channels, height, width), of whose channels the first 2·half are used.
struct Clips {
  int64_t clips, frames, channels, half, positions;
};

// x as `first` is, with so many used channels.
inline Clips check_clips(c10::DeviceType type, const char* name, const at::Tensor& first, const at::Tensor& gate,
                         int64_t used) {
  const Arguments arguments(name, first, type);
  arguments.dimensions(name, first, 5);
  const at::IntArrayRef x = first.sizes();
  arguments.whole(name, first, first.scalar_type(), x);
  arguments.whole("gate", gate, first.scalar_type(), {x[0], 2, x[1], x[3], x[4]});
  TORCH_CHECK_VALUE(x[1] > 0, name, ": expected one frame or more, got shape ", x, ".");
  TORCH_CHECK_VALUE(used > 0 && used % 4 == 0 && used <= x[2], "used: expected a multiple of 4 from 4 to ", x[2],
                    " channels, got ", used, ".");
  return {x[0], x[1], x[2], used / 2, x[3] * x[4]};
}

// The same, with as many as `of_channels` says, (clips, parts, half, frames).
inline Clips check_clips(c10::DeviceType type, const char* name, const at::Tensor& first, const at::Tensor& gate,
                         const char* name_of_channels, const at::Tensor& of_channels, int64_t parts) {
  const Arguments arguments(name, first, type);
  arguments.dimensions(name_of_channels, of_channels, 4);
  const Clips clips = check_clips(type, name, first, gate, 2 * of_channels.size(2));
  arguments.whole(name_of_channels, of_channels, accumulation_dtype(first.scalar_type()),
                  {clips.clips, parts, clips.half, clips.frames});
  return clips;
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

inline void check_gate_shift_fuse(c10::DeviceType type, const at::Tensor& x, const at::Tensor& gate,
                                  const at::Tensor& weight, const at::Tensor& bias, int64_t used) {
  check_clips(type, "x", x, gate, used);
  const Arguments arguments("x", x, type);
  const at::ScalarType wide = accumulation_dtype(x.scalar_type());
  arguments.whole("weight", weight, wide, {2, 2, 3, 3});
  arguments.whole("bias", bias, wide, {2});
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
