// Gram sums and projection on contiguous memory.
#include "../projection.h"

#include <cstring>

#include "projected.h"
#include "stream.h"
#include "sums.h"
#include "table.h"

namespace prograd::cpu {
namespace {

template <typename S>
struct Projection {
  using T = Accumulation<S>;

  static void gram(const void* a_, const void* b_, std::int64_t n, double* sums) {
    const S *a = static_cast<const S*>(a_), *b = static_cast<const S*>(b_);
    double all_aa = 0, all_ab = 0, all_bb = 0;
    each_run<T>(n, [&](std::int64_t begin, std::int64_t end) {
      T aa = 0, ab = 0, bb = 0;
#pragma omp simd reduction(+ : aa, ab, bb)
      for (std::int64_t i = begin; i < end; ++i) {
        const T x = load(a[i]), y = load(b[i]);
        aa = fused(x, x, aa);
        ab = fused(x, y, ab);
        bb = fused(y, y, bb);
      }
      all_aa += aa;
      all_ab += ab;
      all_bb += bb;
    });
    sums[0] = all_aa;
    sums[1] = all_ab;
    sums[2] = all_bb;
  }

  static void project(void* g_, const void* a_, const void* b_, std::int64_t n, double alpha_, double beta_,
                      bool past_caches) {
    S* g = static_cast<S*>(g_);
    const S *a = static_cast<const S*>(a_), *b = static_cast<const S*>(b_);
    const T alpha = T(alpha_), beta = T(beta_);
    const bool stream = past_caches && g != a;  // what was read is in the caches
    if (alpha == T(1) && beta == T(0)) {
      if (stream) return stream_copy(g, a, n * sizeof(S));
      if (g != a) std::memcpy(g, a, n * sizeof(S));
      return;
    }
    with_flag(beta != T(0), [&](auto conflict) {
      if (stream) {
        const Vector<T> alphas = broadcast(alpha), betas = broadcast(beta);
        return Writer<S>(g, n, true).all([&](std::int64_t i, std::int64_t width) {
          const Vector<T> scaled = alphas * loaded(a + i, width, T(0));
          if constexpr (conflict()) return multiply_add(betas, loaded(b + i, width, T(0)), scaled);
          else return scaled;
        });
      }
#pragma omp simd
      for (std::int64_t i = 0; i < n; ++i) store(g[i], gradient<conflict()>(a, b, i, alpha, beta));
    });
  }

  static constexpr ProjectionKernels kernels{gram, project};
};

}  // namespace

template <>
const ByStorage<ProjectionKernels> Compiled<ProjectionKernels>::PF_ISA = by_storage<Projection>();

}  // namespace prograd::cpu
