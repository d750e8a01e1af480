// Gate, shift and fuse on CUDA tensors.
#include "gate_shift_fuse.h"

#include "../common/library.h"
#include "../operators/gate_shift_fuse.h"
#include "launch.h"

namespace prograd::cuda {
namespace {

GatedClips gated(const Clips& of, const at::Tensor& x, const at::Tensor& gate) {
  return {x.const_data_ptr(), gate.const_data_ptr(), of.clips, of.frames, of.channels, of.half, of.positions};
}

void gate_shift_means_out(const at::Tensor& x, const at::Tensor& gate, at::Tensor& means) {
  const Clips of = check_gate_shift_means(at::kCUDA, x, gate, means);
  const Launch launch(x);
  gate_shift_means(storage_of(x.scalar_type()), gated(of, x, gate), means.mutable_data_ptr(), launch.stream());
}

void gate_shift_fuse_out(const at::Tensor& x, const at::Tensor& gate, const at::Tensor& phi, at::Tensor& out) {
  const Clips of = check_gate_shift_fuse(at::kCUDA, x, gate, phi, out);
  const Launch launch(x);
  gate_shift_fuse(storage_of(x.scalar_type()), gated(of, x, gate), phi.const_data_ptr(), out.mutable_data_ptr(),
                  launch.stream());
}

void gate_shift_slopes_out(const at::Tensor& gradient, const at::Tensor& x, const at::Tensor& gate, at::Tensor& d_phi) {
  const Clips of = check_gate_shift_slopes(at::kCUDA, gradient, x, gate, d_phi);
  const Launch launch(x);
  gate_shift_slopes(storage_of(x.scalar_type()), gated(of, x, gate), gradient.const_data_ptr(),
                    d_phi.mutable_data_ptr(), launch.stream());
}

void gate_shift_fuse_backward_out(const at::Tensor& gradient, const at::Tensor& x, const at::Tensor& gate,
                                  const at::Tensor& phi, const at::Tensor& d_means, at::Tensor& d_x,
                                  at::Tensor& d_gate) {
  const Clips of = check_gate_shift_fuse_backward(at::kCUDA, gradient, x, gate, phi, d_means, d_x, d_gate);
  const Launch launch(x);
  gate_shift_fuse_backward(storage_of(x.scalar_type()), gated(of, x, gate), gradient.const_data_ptr(),
                           phi.const_data_ptr(), d_means.const_data_ptr(), d_x.mutable_data_ptr(),
                           d_gate.mutable_data_ptr(), launch.stream());
}

const Registration registration(c10::DispatchKey::CUDA, [](torch::Library& library) {
  library.impl("gate_shift_means_out", TORCH_FN(gate_shift_means_out));
  library.impl("gate_shift_fuse_out", TORCH_FN(gate_shift_fuse_out));
  library.impl("gate_shift_slopes_out", TORCH_FN(gate_shift_slopes_out));
  library.impl("gate_shift_fuse_backward_out", TORCH_FN(gate_shift_fuse_backward_out));
});

}  // namespace
}  // namespace prograd::cuda
