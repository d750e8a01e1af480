// Affine shift and its backward, a channel at a time, on contiguous memory.
#include "../affine_shift.h"

#include <algorithm>

#include "stream.h"
#include "sums.h"
#include "table.h"

namespace prograd::cpu {
namespace {

// to[i] = moved(x)[begin + i] for the positions from begin to end: a copy from `offset` before, and zeros where that
// is in another run, the first positions of each run or its last ones.
template <typename S, typename T = Accumulation<S>>
void moved(const S* x, const Move& move, std::int64_t begin, std::int64_t end, T* to) {
  const std::int64_t d = move.offset, width = d > 0 ? d : -d, place = d > 0 ? 0 : move.period - width;
  const std::int64_t last = d > 0 ? end : std::min(end, move.n + d);
#pragma omp simd
  for (std::int64_t i = std::max(d, begin); i < last; ++i) to[i - begin] = load(x[i - d]);
  if (d == 0) return;
  for (std::int64_t run = begin / move.period * move.period + place; run < end; run += move.period) {
    for (std::int64_t i = std::max(run, begin); i < std::min(run + width, end); ++i) to[i - begin] = T(0);
  }
}

template <typename S>
struct AffineShift {
  using T = Accumulation<S>;

  static void forward(const void* from, const void* added, void* to, double scale_, Move move, bool past_caches) {
    const S *x = static_cast<const S*>(from), *bias = static_cast<const S*>(added);
    const T scale = T(scale_);
    T values[block];
    each_block(static_cast<S*>(to), move.n, past_caches, [&](std::int64_t begin, std::int64_t end, S* out) {
      moved(x, move, begin, end, values);
      if (bias) {
#pragma omp simd
        for (std::int64_t i = 0; i < end - begin; ++i) store(out[i], fused(scale, values[i], load(bias[begin + i])));
      } else {
#pragma omp simd
        for (std::int64_t i = 0; i < end - begin; ++i) store(out[i], scale * values[i]);
      }
    });
  }

  static double backward(const void* from, const void* with, void* to, double scale_, Move move, bool past_caches) {
    const S *gradient = static_cast<const S*>(from), *x = static_cast<const S*>(with);
    const T scale = T(scale_);
    T values[block];
    double total = 0;
    each_block(static_cast<S*>(to), move.n, past_caches, [&](std::int64_t begin, std::int64_t end, S* d_x) {
      moved(gradient, move, begin, end, values);
      each_run<T>(end - begin, [&](std::int64_t i, std::int64_t last) {
        T sum = 0;
#pragma omp simd reduction(+ : sum)
        for (std::int64_t j = i; j < last; ++j) {
          sum += values[j] * load(x[begin + j]);
          store(d_x[j], scale * values[j]);
        }
        total += sum;
      });
    });
    return total;
  }

  static constexpr AffineShiftKernels kernels{forward, backward};
};

}  // namespace

template <>
const ByStorage<AffineShiftKernels> Compiled<AffineShiftKernels>::PF_ISA = by_storage<AffineShift>();

}  // namespace prograd::cpu
