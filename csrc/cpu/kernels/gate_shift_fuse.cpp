// Gate, shift and fuse and its backward, a channel of a frame at a time, on contiguous memory.
#include "../gate_shift_fuse.h"

#include <initializer_list>

#include "stream.h"
#include "sums.h"
#include "table.h"

namespace prograd::cpu {
namespace {

template <typename S>
struct GateShift {
  using T = Accumulation<S>;

  static void sums(const GatedPlane& plane, double* passed, double* rest) {
    const S *u = static_cast<const S*>(plane.u), *gate = static_cast<const S*>(plane.gate);
    LongSum<T> of_passed, of_rest;
    each_run<T>(plane.n, [&](std::int64_t begin, std::int64_t end) {
      Vector<T> p{}, r{};
      fetch_ahead(u + begin, end - begin);
      each_vector<T>(end - begin, [&](std::int64_t c, std::int64_t width) {
        const Vector<T> x = loaded(u + begin + c, width, T(0)), y = loaded(gate + begin + c, width, T(0)) * x;
        p += y;
        r += x - y;
      });
      of_passed.add(p);
      of_rest.add(r);
    });
    *passed = of_passed.total();
    *rest = of_rest.total();
  }

  static void fuse(const GatedPlane& plane, double phi_, void* to, bool past_caches) {
    const S *u = static_cast<const S*>(plane.u), *gate = static_cast<const S*>(plane.gate);
    const S *other = static_cast<const S*>(plane.other_u), *other_gate = static_cast<const S*>(plane.other_gate);
    const T phi = T(phi_), rest = T(1 - phi_);
    with_flag(other != nullptr, [&](auto comes) {
      each_block(static_cast<S*>(to), plane.n, past_caches, [&](std::int64_t begin, std::int64_t end, S* out) {
        fetch_ahead(u + begin, end - begin);
#pragma omp simd
        for (std::int64_t i = begin; i < end; ++i) {
          const T x = load(u[i]);
          T y = rest * (x - load(gate[i]) * x);
          if constexpr (comes) y = fused(phi, load(other_gate[i]) * load(other[i]), y);
          store(out[i - begin], y);
        }
      });
    });
  }

  static double slope(const GatedPlane& plane, const void* gradient) {
    const S *u = static_cast<const S*>(plane.u), *gate = static_cast<const S*>(plane.gate);
    const S *other = static_cast<const S*>(plane.other_u), *other_gate = static_cast<const S*>(plane.other_gate);
    const S* g = static_cast<const S*>(gradient);
    LongSum<T> total;
    with_flag(other != nullptr, [&](auto comes) {
      each_run<T>(plane.n, [&](std::int64_t begin, std::int64_t end) {
        Vector<T> sum{};
        for (const S* from : {u, g}) fetch_ahead(from + begin, end - begin);
        each_vector<T>(end - begin, [&](std::int64_t c, std::int64_t width) {
          const auto at = [&](const S* map) { return loaded(map + begin + c, width, T(0)); };
          const Vector<T> x = at(u);
          Vector<T> y = at(gate) * x - x;
          if constexpr (comes) y = multiply_add(at(other_gate), at(other), y);
          sum = multiply_add(at(g), y, sum);
        });
        total.add(sum);
      });
    });
    return total.total();
  }

  static void backward(const void* u_, const void* gate_, const GatedGradient& of, void* d_u, void* d_gate_,
                       std::int64_t n, bool past_caches) {
    const S *u = static_cast<const S*>(u_), *gate = static_cast<const S*>(gate_);
    const S *g = static_cast<const S*>(of.gradient), *other = static_cast<const S*>(of.other_gradient);
    T* d_gate = static_cast<T*>(d_gate_);
    const T slope = T(of.slope), offset = T(of.offset);
    const T other_slope = T(of.other_slope), other_offset = T(of.other_offset);
    with_flag(other != nullptr, [&](auto comes) {
      each_block(static_cast<S*>(d_u), n, past_caches, [&](std::int64_t begin, std::int64_t end, S* out) {
        for (const S* from : {u, g}) fetch_ahead(from + begin, end - begin);
#pragma omp simd
        for (std::int64_t i = begin; i < end; ++i) {
          const T d_rest = fused(slope, load(g[i]), offset);
          T d_passed = -d_rest;
          if constexpr (comes) d_passed += fused(other_slope, load(other[i]), other_offset);
          d_gate[i] = fused(d_passed, load(u[i]), d_gate[i]);
          store(out[i - begin], fused(load(gate[i]), d_passed, d_rest));
        }
      });
    });
  }

  static constexpr GateShiftKernels kernels{sums, fuse, slope, backward};
};

}  // namespace

template <>
const ByStorage<GateShiftKernels> Compiled<GateShiftKernels>::PF_ISA = by_storage<GateShift>();

}  // namespace prograd::cpu
