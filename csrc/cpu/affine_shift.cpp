// affine_shift, affine_shift_out and affine_shift_backward_out on CPU tensors.
#include "affine_shift.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <optional>
#include <vector>

#include "../common/kept_memory.h"
#include "../common/large.h"
#include "../common/library.h"
#include "../common/operand.h"
#include "../operators/affine_shift.h"

namespace prograd::cpu {
namespace {

constexpr int64_t grain_size = 16384;  // elements for which a second thread pays

// How each channel moves, backwards for a gradient.
std::vector<Move> moves_of(const at::Tensor& x, at::IntArrayRef groups, at::IntArrayRef axes, bool back) {
  std::vector<Move> moves;
  for (size_t g = 0; g < groups.size(); ++g) {
    const AxisShift shift = shift_along(x, axes[g], back);
    moves.insert(moves.end(), groups[g], Move{x.numel() / (x.size(0) * x.size(1)), shift.offset, shift.period});
  }
  return moves;
}

// Calls body(channel of all pictures, how it moves).
template <typename Body>
void each_channel(const std::vector<Move>& moves, int64_t pictures, Body body) {
  const int64_t channels = int64_t(moves.size());
  const int64_t grain = std::max<int64_t>(1, grain_size / moves[0].n);
  at::parallel_for(0, pictures * channels, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) body(i, moves[i % channels]);
  });
}

void affine_shift_out(const at::Tensor& x, MaybeTensor scale, MaybeTensor bias, at::IntArrayRef groups,
                      at::IntArrayRef axes, at::Tensor& out) {
  check_affine_shift(at::kCPU, x, scale, bias, groups, axes, out);
  if (x.numel() == 0) return;
  const auto& kernels = kernels_for<AffineShiftKernels>(storage_of(x.scalar_type()));
  const char *from = static_cast<const char*>(data_of(x)),
             *added = bias ? static_cast<const char*>(data_of(*bias)) : nullptr;
  char* to = static_cast<char*>(out.mutable_data_ptr());
  const std::optional<Numbers> scales = scale ? std::optional<Numbers>(*scale) : std::nullopt;
  const int64_t size = x.itemsize();
  const bool past_caches = int64_t(out.nbytes()) >= stream_bytes;
  prefer_huge_pages(to, out.nbytes());
  each_channel(moves_of(x, groups, axes, false), x.size(0), [&](int64_t i, const Move& move) {
    const int64_t at = i * move.n * size;
    kernels.forward(from + at, added ? added + at : nullptr, to + at, scales ? (*scales)[i] : 1, move, past_caches);
  });
}

void affine_shift_backward_out(const at::Tensor& gradient, const at::Tensor& x, const at::Tensor& scale,
                               at::IntArrayRef groups, at::IntArrayRef axes, at::Tensor& d_x, at::Tensor& d_scale) {
  check_affine_shift_backward(at::kCPU, gradient, x, scale, groups, axes, d_x, d_scale);
  if (x.numel() == 0) {
    d_scale.zero_();
    return;
  }
  const auto& kernels = kernels_for<AffineShiftKernels>(storage_of(x.scalar_type()));
  const char *from = static_cast<const char*>(data_of(gradient)), *with = static_cast<const char*>(data_of(x));
  char* to = static_cast<char*>(d_x.mutable_data_ptr());
  const Numbers scales(scale);
  const WrittenNumbers d_scales(d_scale);
  const int64_t size = x.itemsize();
  const bool past_caches = int64_t(d_x.nbytes()) >= stream_bytes;
  prefer_huge_pages(to, d_x.nbytes());
  each_channel(moves_of(x, groups, axes, true), x.size(0), [&](int64_t i, const Move& move) {
    const int64_t at = i * move.n * size;
    d_scales.set(i, kernels.backward(from + at, with + at, to + at, scales[i], move, past_caches));
  });
}

at::Tensor affine_shift(const at::Tensor& x, MaybeTensor scale, MaybeTensor bias, at::IntArrayRef groups,
                        at::IntArrayRef axes) {
  check_shift(at::kCPU, "x", x, groups, axes);  // before anything is read of x
  at::Tensor out = empty_in_kept_memory(x.sizes(), x.options());
  affine_shift_out(x, scale, bias, groups, axes, out);
  return out;
}

const Registration registration(c10::DispatchKey::CPU, [](torch::Library& library) {
  library.impl("affine_shift", TORCH_FN(affine_shift));
  library.impl("affine_shift_out", TORCH_FN(affine_shift_out));
  library.impl("affine_shift_backward_out", TORCH_FN(affine_shift_backward_out));
});

}  // namespace
}  // namespace prograd::cpu
