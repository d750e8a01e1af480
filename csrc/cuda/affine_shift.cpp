// affine_shift_out and affine_shift_backward_out on CUDA tensors.
#include "affine_shift.h"

#include <vector>

#include "../common/library.h"
#include "../operators/affine_shift.h"
#include "launch.h"

namespace prograd::cuda {
namespace {

// Calls run(how the channels move).
template <typename Run>
void with_shift(const at::Tensor& x, at::IntArrayRef groups, at::IntArrayRef axes, bool back, Run run) {
  if (x.numel() == 0) return;
  std::vector<ShiftGroup> all;
  for (size_t g = 0; g < groups.size(); ++g) {
    const AxisShift shift = shift_along(x, axes[g], back);
    all.push_back({groups[g], shift.offset, shift.period});
  }
  run(Shift{all.data(), int64_t(all.size()), x.size(0), x.size(1), x.numel() / (x.size(0) * x.size(1))});
}

void affine_shift_out(const at::Tensor& x, MaybeTensor scale, MaybeTensor bias, at::IntArrayRef groups,
                      at::IntArrayRef axes, at::Tensor& out) {
  check_affine_shift(at::kCUDA, x, scale, bias, groups, axes, out);
  const Launch launch(x);
  with_shift(x, groups, axes, false, [&](const Shift& shift) {
    affine_shift(storage_of(x.scalar_type()), x.const_data_ptr(), scale ? scale->const_data_ptr() : nullptr,
                 bias ? bias->const_data_ptr() : nullptr, out.mutable_data_ptr(), shift, launch.stream());
  });
}

void affine_shift_backward_out(const at::Tensor& gradient, const at::Tensor& x, const at::Tensor& scale,
                               at::IntArrayRef groups, at::IntArrayRef axes, at::Tensor& d_x, at::Tensor& d_scale) {
  check_affine_shift_backward(at::kCUDA, gradient, x, scale, groups, axes, d_x, d_scale);
  const Launch launch(x);
  if (x.numel() == 0) d_scale.zero_();
  with_shift(x, groups, axes, true, [&](const Shift& shift) {
    affine_shift_backward(storage_of(x.scalar_type()), gradient.const_data_ptr(), x.const_data_ptr(),
                          scale.const_data_ptr(), d_x.mutable_data_ptr(), d_scale.mutable_data_ptr(), shift,
                          launch.stream());
  });
}

const Registration registration(c10::DispatchKey::CUDA, [](torch::Library& library) {
  library.impl("affine_shift_out", TORCH_FN(affine_shift_out));
  library.impl("affine_shift_backward_out", TORCH_FN(affine_shift_backward_out));
});

}  // namespace
}  // namespace prograd::cuda
