// Gate, shift and fuse on CPU tensors.
#include "gate_shift_fuse.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <tuple>

#include "../common/kept_memory.h"
#include "../common/large.h"
#include "../common/library.h"
#include "../common/operand.h"
#include "../operators/gate_shift_fuse.h"

namespace prograd::cpu {
namespace {

constexpr int64_t grain_size = 16384;     // elements for which a second thread pays
constexpr int64_t part = 4096;            // positions that a thread has of a group, whose channels add up to d_gate
constexpr int64_t streamed_bytes = 4096;  // of a plane: the ends of shorter ones are too many to go past the caches

// Planes of a tensor that is read, or of one that is written.
struct Map {
  char* data;
  int64_t size, bytes;  // of an element, and of all

  static Map of(const at::Tensor& read) { return {static_cast<char*>(const_cast<void*>(data_of(read))), read}; }
  static Map written(const at::Tensor& map) { return {static_cast<char*>(map.mutable_data_ptr()), map}; }

 private:
  Map(char* begin, const at::Tensor& map) : data(begin), size(map.itemsize()), bytes(map.nbytes()) {}
};

// The used channels of a call: where a channel of a frame is, in maps, in the gate, and in what has a number for each.
struct Planes {
  const Clips of;
  const GateShiftKernels& kernels;
  const Map x, gate;

  Planes(const Clips& clips, const at::Tensor& x, const at::Tensor& gate)
      : of(clips),
        kernels(kernels_for<GateShiftKernels>(storage_of(x.scalar_type()))),
        x(Map::of(x)),
        gate(Map::of(gate)) {}

  int64_t used() const { return 2 * of.half; }
  char* at(const Map& map, int64_t b, int64_t t, int64_t c, int64_t position = 0) const {
    return in_plane(map, (b * of.frames + t) * of.channels + c, position);
  }
  char* at_gate(const Map& map, int64_t b, int64_t t, int64_t k, int64_t position = 0) const {
    return in_plane(map, (b * 2 + k) * of.frames + t, position);
  }
  char* in_plane(const Map& map, int64_t plane, int64_t position) const {
    return map.data + (plane * of.positions + position) * map.size;
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
  bool past_caches() const { return x.bytes >= stream_bytes && of.positions * x.size >= streamed_bytes; }

  GatedPlane plane(int64_t b, int64_t t, int64_t c) const {
    const int64_t k = c / of.half, from = t + step(c);
    const bool comes = inside(from);
    return {at(x, b, t, c), at_gate(gate, b, t, k), comes ? at(x, b, from, c) : nullptr,
            comes ? at_gate(gate, b, from, k) : nullptr, of.positions};
  }

  // How many channels of so many positions are gone through together in all frames, so that a neighbour is still in a
  // cache.
  static int64_t together(int64_t positions) {
    return std::max<int64_t>(1, grain_size / std::max<int64_t>(1, positions));
  }

  // Calls body(t, c) for the channels from `first` to `last`.
  template <typename Body>
  void in_all_frames(int64_t first, int64_t last, Body body) const {
    for (int64_t t = 0; t < of.frames; ++t) {
      for (int64_t c = first; c < last; ++c) body(t, c);
    }
  }

  // Calls body(b, t, c), the channels that go together on one thread.
  template <typename Body>
  void each(Body body) const {
    const int64_t step = together(of.positions), parts = (used() + step - 1) / step;
    at::parallel_for(0, of.clips * parts, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t b = i / parts, first = i % parts * step;
        in_all_frames(first, std::min(first + step, used()), [&](int64_t t, int64_t c) { body(b, t, c); });
      }
    });
  }
};

void gate_shift_means_out(const at::Tensor& x, const at::Tensor& gate, at::Tensor& means) {
  const Planes planes(check_gate_shift_means(at::kCPU, x, gate, means), x, gate);
  const WrittenNumbers pairs(means);
  const double n = double(planes.of.positions);
  planes.each([&](int64_t b, int64_t t, int64_t c) {
    double passed, rest;
    planes.kernels.sums(planes.plane(b, t, c), &passed, &rest);
    const int64_t to = t - planes.step(c);  // nothing comes to the frame at the other end
    const bool inside = planes.inside(to);
    pairs.set(planes.pair(b, inside ? to : (to + planes.of.frames) % planes.of.frames, c, false),
              inside ? passed / n : 0);
    pairs.set(planes.pair(b, t, c, true), rest / n);
  });
}

void gate_shift_fuse_out(const at::Tensor& x, const at::Tensor& gate, const at::Tensor& phi, at::Tensor& out) {
  const Planes planes(check_gate_shift_fuse(at::kCPU, x, gate, phi, out), x, gate);
  const Map result = Map::written(out);
  const Numbers phis(phi);
  const bool past_caches = planes.past_caches();
  prefer_huge_pages(result.data, result.bytes);
  planes.each([&](int64_t b, int64_t t, int64_t c) {
    planes.kernels.fuse(planes.plane(b, t, c), phis[planes.number(b, t, c)],
                        planes.at(result, b, t, planes.interleaved(c)), past_caches);
  });
}

void gate_shift_slopes_out(const at::Tensor& gradient, const at::Tensor& x, const at::Tensor& gate, at::Tensor& d_phi) {
  const Planes planes(check_gate_shift_slopes(at::kCPU, gradient, x, gate, d_phi), x, gate);
  const Map of_out = Map::of(gradient);
  const WrittenNumbers slopes(d_phi);
  planes.each([&](int64_t b, int64_t t, int64_t c) {
    const char* g = planes.at(of_out, b, t, planes.interleaved(c));
    slopes.set(planes.number(b, t, c), planes.kernels.slope(planes.plane(b, t, c), g));
  });
}

void gate_shift_fuse_backward_out(const at::Tensor& gradient, const at::Tensor& x, const at::Tensor& gate,
                                  const at::Tensor& phi, const at::Tensor& d_means, at::Tensor& d_x,
                                  at::Tensor& d_gate) {
  const Planes planes(check_gate_shift_fuse_backward(at::kCPU, gradient, x, gate, phi, d_means, d_x, d_gate), x, gate);
  const Clips& of = planes.of;
  const double n = double(of.positions);
  const bool past_caches = planes.past_caches();
  const Written sums(d_gate, phi.scalar_type());
  sums.tensor().zero_();
  const Map of_out = Map::of(gradient), of_x = Map::written(d_x), of_gate = Map::written(sums.tensor());
  const Numbers phis(phi), of_means(d_means);
  prefer_huge_pages(of_x.data, of_x.bytes);
  const int64_t parts = (of.positions + part - 1) / part;
  const int64_t grain = std::max<int64_t>(1, grain_size / std::max<int64_t>(1, of.frames * of.half * of.positions));
  at::parallel_for(0, of.clips * 2 * parts, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t from = i % parts * part, size = std::min(part, of.positions - from), k = i / parts % 2;
      const int64_t b = i / parts / 2, last = (k + 1) * of.half, step = planes.together(size);
      const auto one = [&](int64_t t, int64_t c) {
        const int64_t to = t - planes.step(c), place = planes.interleaved(c);
        GatedGradient of_plane{};
        of_plane.gradient = planes.at(of_out, b, t, place, from);
        of_plane.slope = 1 - phis[planes.number(b, t, c)];
        of_plane.offset = of_means[planes.pair(b, t, c, true)] / n;
        if (planes.inside(to)) {
          of_plane.other_gradient = planes.at(of_out, b, to, place, from);
          of_plane.other_slope = phis[planes.number(b, to, c)];
          of_plane.other_offset = of_means[planes.pair(b, to, c, false)] / n;
        }
        planes.kernels.backward(planes.at(planes.x, b, t, c, from), planes.at_gate(planes.gate, b, t, k, from),
                                of_plane, planes.at(of_x, b, t, c, from), planes.at_gate(of_gate, b, t, k, from), size,
                                past_caches);
      };
      for (int64_t c = k * of.half; c < last; c += step) planes.in_all_frames(c, std::min(c + step, last), one);
    }
  });
  sums.write_back();
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
