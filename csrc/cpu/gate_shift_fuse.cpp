// Gate, shift and fuse on CPU tensors.
#include "gate_shift_fuse.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <tuple>
#include <vector>

#include "../common/kept_memory.h"
#include "../common/large.h"
#include "../common/library.h"
#include "../common/operand.h"
#include "../operators/gate_shift_fuse.h"

namespace prograd::cpu {
namespace {

constexpr int64_t grain_size = 16384;     // elements for which a second thread pays
constexpr int64_t streamed_bytes = 4096;  // of a plane: the ends of shorter ones are too many to go past the caches

// The used channels of a call: where a channel of a frame is, in maps, in the gate, and in what has a number for each.
struct Planes {
  const Clips of;
  const at::Tensor &x, &gate;
  const GateShiftKernels& kernels = kernels_for<GateShiftKernels>(storage_of(x.scalar_type()));
  const int64_t bytes = of.positions * int64_t(x.itemsize());  // of a plane

  int64_t used() const { return 2 * of.half; }
  char* at(const at::Tensor& map, int64_t b, int64_t t, int64_t c) const {
    return static_cast<char*>(const_cast<void*>(data_of(map))) + ((b * of.frames + t) * of.channels + c) * bytes;
  }
  char* at_gate(const at::Tensor& map, int64_t b, int64_t t, int64_t k) const {
    return static_cast<char*>(const_cast<void*>(data_of(map))) + ((b * 2 + k) * of.frames + t) * bytes;
  }
  // Of phi, or one of the pair of `means`.
  int64_t number(int64_t b, int64_t t, int64_t c) const { return (b * used() + c) * of.frames + t; }
  int64_t pair(int64_t b, int64_t t, int64_t c, bool rest) const {
    return ((b * 4 + c / of.half * 2 + rest) * of.half + c % of.half) * of.frames + t;
  }
  // Where a channel goes: the halves of its group are interleaved.
  int64_t interleaved(int64_t c) const {
    const int64_t j = c % of.half, quarter = of.half / 2;
    return c - j + j % quarter * 2 + j / quarter;
  }
  // The frame that a channel takes from is t + this; the one that it moves to is t - this.
  int64_t step(int64_t c) const { return c < of.half ? 1 : -1; }
  bool inside(int64_t t) const { return t >= 0 && t < of.frames; }
  bool past_caches() const { return int64_t(x.nbytes()) >= stream_bytes && bytes >= streamed_bytes; }

  GatedPlane plane(int64_t b, int64_t t, int64_t c) const {
    const int64_t k = c / of.half, from = t + step(c);
    const bool comes = inside(from);
    return {at(x, b, t, c), at_gate(gate, b, t, k), comes ? at(x, b, from, c) : nullptr,
            comes ? at_gate(gate, b, from, k) : nullptr, of.positions};
  }

  // Calls body(b, t, c): some channels of all frames on one thread, so that a neighbour is still in a cache.
  template <typename Body>
  void each(Body body) const {
    const int64_t together = std::clamp<int64_t>(grain_size / std::max<int64_t>(1, of.positions), 1, used());
    const int64_t parts = (used() + together - 1) / together;
    at::parallel_for(0, of.clips * parts, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t b = i / parts, first = i % parts * together, last = std::min(first + together, used());
        for (int64_t t = 0; t < of.frames; ++t) {
          for (int64_t c = first; c < last; ++c) body(b, t, c);
        }
      }
    });
  }
};

void gate_shift_means_out(const at::Tensor& x, const at::Tensor& gate, at::Tensor& means) {
  const Planes planes{check_gate_shift_means(at::kCPU, x, gate, means), x, gate};
  const double n = double(planes.of.positions);
  planes.each([&](int64_t b, int64_t t, int64_t c) {
    double passed, rest;
    planes.kernels.sums(planes.plane(b, t, c), &passed, &rest);
    const int64_t to = t - planes.step(c);  // nothing comes to the frame at the other end
    const bool inside = planes.inside(to);
    set(means, planes.pair(b, inside ? to : (to + planes.of.frames) % planes.of.frames, c, false),
        inside ? passed / n : 0);
    set(means, planes.pair(b, t, c, true), rest / n);
  });
}

void gate_shift_fuse_out(const at::Tensor& x, const at::Tensor& gate, const at::Tensor& phi, at::Tensor& out) {
  const Planes planes{check_gate_shift_fuse(at::kCPU, x, gate, phi, out), x, gate};
  const bool past_caches = planes.past_caches();
  prefer_huge_pages(static_cast<char*>(out.mutable_data_ptr()), out.nbytes());
  planes.each([&](int64_t b, int64_t t, int64_t c) {
    planes.kernels.fuse(planes.plane(b, t, c), get(phi, planes.number(b, t, c)),
                        planes.at(out, b, t, planes.interleaved(c)), past_caches);
  });
}

void gate_shift_slopes_out(const at::Tensor& gradient, const at::Tensor& x, const at::Tensor& gate, at::Tensor& d_phi) {
  const Planes planes{check_gate_shift_slopes(at::kCPU, gradient, x, gate, d_phi), x, gate};
  planes.each([&](int64_t b, int64_t t, int64_t c) {
    const char* g = planes.at(gradient, b, t, planes.interleaved(c));
    set(d_phi, planes.number(b, t, c), planes.kernels.slope(planes.plane(b, t, c), g));
  });
}

void gate_shift_fuse_backward_out(const at::Tensor& gradient, const at::Tensor& x, const at::Tensor& gate,
                                  const at::Tensor& phi, const at::Tensor& d_means, at::Tensor& d_x,
                                  at::Tensor& d_gate) {
  const Planes planes{check_gate_shift_fuse_backward(at::kCPU, gradient, x, gate, phi, d_means, d_x, d_gate), x, gate};
  const Clips& of = planes.of;
  const double n = double(of.positions);
  const bool past_caches = planes.past_caches();
  prefer_huge_pages(static_cast<char*>(d_x.mutable_data_ptr()), d_x.nbytes());
  const int64_t grain = std::max<int64_t>(1, grain_size / std::max<int64_t>(1, of.half * of.positions));
  at::parallel_for(0, of.clips * of.frames * 2, grain, [&](int64_t begin, int64_t end) {
    std::vector<GatedGradient> gradients(of.half);
    for (int64_t i = begin; i < end; ++i) {  // a group of channels of one frame
      const int64_t k = i % 2, t = i / 2 % of.frames, b = i / 2 / of.frames, first = k * of.half;
      const int64_t to = t - planes.step(first);
      for (int64_t c = first; c < first + of.half; ++c) {
        GatedGradient& one = gradients[c - first];
        const int64_t place = planes.interleaved(c);
        one = {planes.at(gradient, b, t, place),
               nullptr,
               1 - get(phi, planes.number(b, t, c)),
               get(d_means, planes.pair(b, t, c, true)) / n,
               0,
               0};
        if (!planes.inside(to)) continue;
        one.other_gradient = planes.at(gradient, b, to, place);
        one.other_slope = get(phi, planes.number(b, to, c));
        one.other_offset = get(d_means, planes.pair(b, to, c, false)) / n;
      }
      planes.kernels.backward(planes.at(x, b, t, first), planes.at_gate(gate, b, t, k), planes.at(d_x, b, t, first),
                              planes.at_gate(d_gate, b, t, k), gradients.data(), of.half, of.positions, past_caches);
    }
  });
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> gate_shift_fuse(const at::Tensor& x, const at::Tensor& gate,
                                                               const at::Tensor& weight, const at::Tensor& bias,
                                                               int64_t used) {
  check_gate_shift_fuse(at::kCPU, x, gate, weight, bias, used);
  at::Tensor means = at::empty({x.size(0), 4, used / 2, x.size(1)}, weight.options());
  gate_shift_means_out(x, gate, means);
  const at::Tensor phi = at::conv2d(means, weight, bias, 1, 1, 1, 2).sigmoid_().contiguous();
  at::Tensor out = empty_in_kept_memory(x.sizes(), x.options());
  gate_shift_fuse_out(x, gate, phi, out);
  if (used < x.size(2)) out.slice(2, used).copy_(x.slice(2, used));
  return {out, means, phi};
}

const Registration registration(c10::DispatchKey::CPU, [](torch::Library& library) {
  library.impl("gate_shift_fuse", TORCH_FN(gate_shift_fuse));
  library.impl("gate_shift_means_out", TORCH_FN(gate_shift_means_out));
  library.impl("gate_shift_fuse_out", TORCH_FN(gate_shift_fuse_out));
  library.impl("gate_shift_slopes_out", TORCH_FN(gate_shift_slopes_out));
  library.impl("gate_shift_fuse_backward_out", TORCH_FN(gate_shift_fuse_backward_out));
});

}  // namespace
}  // namespace prograd::cpu
