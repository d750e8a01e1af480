// The two passes of gate, shift and fuse, and those of its backward.
#include "../../csrc/cpu/gate_shift_fuse.h"

#include "native.h"

namespace {

void test_passes(const Case& c, std::int64_t n, bool comes, bool past_caches) {
  const auto& kernels = c.kernels<GateShiftKernels>(1);
  std::mt19937 random(1);
  Buffer u(c.storage, n, c.shift), gate(c.storage, n, c.shift), other(c.storage, n), other_gate(c.storage, n),
      gradient(c.storage, n, c.shift), out(c.storage, n, c.shift);
  for (Buffer* buffer : {&u, &gate, &other, &other_gate, &gradient}) buffer->fill(random);
  const GatedPlane plane{u.data(), gate.data(), comes ? other.data() : nullptr, comes ? other_gate.data() : nullptr, n};

  double passed, rest;
  kernels.sums(plane, &passed, &rest);
  kernels.fuse(plane, 0.75, out.data(), past_caches);
  const double slope = kernels.slope(plane, gradient.data());

  double sums[3] = {}, terms[3] = {1, 1, 1};  // of what passes, of the rest, of the slope; and of their magnitudes
  for (std::int64_t i = 0; i < n; ++i) {
    const double y = gate[i] * u[i], r = u[i] - y, came = comes ? other_gate[i] * other[i] : 0;
    c.agree("fused", out[i], 0.75 * came + 0.25 * r, 4 + std::fabs(y));
    const double of_pixel[3] = {y, r, gradient[i] * (came - r)};
    for (int k = 0; k < 3; ++k) sums[k] += of_pixel[k], terms[k] += std::fabs(of_pixel[k]) + std::fabs(y);
  }
  c.agree("sum of what passes", passed, sums[0], terms[0]);
  c.agree("sum of the rest", rest, sums[1], terms[1]);
  c.agree("slope", slope, sums[2], terms[2]);
}

void test_backward(const Case& c, std::int64_t n, bool past_caches) {
  constexpr std::int64_t planes = 3;
  const auto& kernels = c.kernels<GateShiftKernels>(1);
  std::mt19937 random(2);
  Buffer u(c.storage, planes * n, c.shift), gate(c.storage, n), gradient(c.storage, planes * n),
      other(c.storage, planes * n, c.shift), d_u(c.storage, planes * n, c.shift), d_gate(accumulation_of(c.storage), n);
  for (Buffer* buffer : {&u, &gate, &gradient, &other}) buffer->fill(random);
  d_gate.fill_with(0);
  GatedGradient gradients[planes];
  for (std::int64_t k = 0; k < planes; ++k) {  // the second one moves out of the clip
    const auto at = k * n * std::int64_t(u.size());
    gradients[k] = {static_cast<char*>(gradient.data()) + at,
                    k == 1 ? nullptr : static_cast<char*>(other.data()) + at,
                    0.25 * double(k + 1),
                    0.5,
                    0.75,
                    -0.125 * double(k)};
    kernels.backward(static_cast<char*>(u.data()) + at, gate.data(), gradients[k], static_cast<char*>(d_u.data()) + at,
                     d_gate.data(), n, past_caches);
  }

  for (std::int64_t i = 0; i < n; ++i) {
    double sum = 0, terms = 1;
    for (std::int64_t k = 0; k < planes; ++k) {
      const GatedGradient& of = gradients[k];
      const double d_rest = of.slope * gradient[k * n + i] + of.offset;
      const double of_moved = of.other_gradient ? of.other_slope * other[k * n + i] + of.other_offset : 0;
      const double d_passed = of_moved - d_rest;
      c.agree("gradient of a clip", d_u[k * n + i], d_rest + gate[i] * d_passed, 4 + std::fabs(gate[i]) * 4);
      sum += d_passed * u[k * n + i], terms += (std::fabs(d_rest) + std::fabs(of_moved)) * std::fabs(u[k * n + i]);
    }
    c.agree("gradient of a gate", d_gate[i], sum, terms);
  }
}

void test_gate_shift_fuse(const Case& c) {
  for (const std::int64_t n : {c.n, 2 * c.n + 1}) {  // up to more than two blocks
    for (const bool past_caches : {false, true}) {
      for (const bool comes : {false, true}) test_passes(c, n, comes, past_caches);
      test_backward(c, n, past_caches);
    }
  }
}

const Test cases(test_gate_shift_fuse);

}  // namespace
