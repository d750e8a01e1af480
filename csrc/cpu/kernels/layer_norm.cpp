// Residual sum and layer norm of contiguous rows, and the backward of both.
#include "../layer_norm.h"

#include "../../formulas/layer_norm.h"
#include "table.h"

namespace prograd::cpu {
namespace {

template <typename S>
struct LayerNorm {
  using T = Accumulation<S>;

  static void forward(const AddLayerNorm& all, std::int64_t begin, std::int64_t end) {
    const std::int64_t width = all.width;
    const T* weight = static_cast<const T*>(all.weight);
    const T* bias = static_cast<const T*>(all.bias);
    for (std::int64_t row = begin; row < end; ++row) {
      const S* x = static_cast<const S*>(all.x) + row * width;
      const S* branch = static_cast<const S*>(all.branch) + row * width;
      S* total = static_cast<S*>(all.total) + row * width;
      S* normed = static_cast<S*>(all.normed) + row * width;
      T* statistics = static_cast<T*>(all.statistics) + 2 * row;
      T sum = 0;
#pragma omp simd reduction(+ : sum)
      for (std::int64_t i = 0; i < width; ++i) {
        store(total[i], load(x[i]) + load(branch[i]));
        sum += load(total[i]);  // as it is stored
      }
      const T mean = sum / T(width);
      T squares = 0;
#pragma omp simd reduction(+ : squares)
      for (std::int64_t i = 0; i < width; ++i) {
        const T t = load(total[i]) - mean;
        squares = fused(t, t, squares);
      }
      const T rstd = T(1) / root(squares / T(width) + T(all.eps));
#pragma omp simd
      for (std::int64_t i = 0; i < width; ++i) {
        store(normed[i], layer_normed(load(total[i]), mean, rstd, weight[i], bias[i]));
      }
      statistics[0] = mean;
      statistics[1] = rstd;
    }
  }

  static void backward(const LayerNormBackward& all, std::int64_t begin, std::int64_t end) {
    const std::int64_t width = all.width;
    const T* weight = static_cast<const T*>(all.weight);
    for (std::int64_t row = begin; row < end; ++row) {
      const S* total = static_cast<const S*>(all.total) + row * width;
      const T mean = static_cast<const T*>(all.statistics)[2 * row];
      const T rstd = static_cast<const T*>(all.statistics)[2 * row + 1];
      for (std::int64_t k = 0; k < all.count; ++k) {
        const std::int64_t at = (k * all.rows + row) * width;
        const S* d_normed = static_cast<const S*>(all.d_normed) + at;
        S* d_total = static_cast<S*>(all.d_total) + at;
        T sum_u = 0, sum_uh = 0;
#pragma omp simd reduction(+ : sum_u, sum_uh)
        for (std::int64_t i = 0; i < width; ++i) {
          const T u = load(d_normed[i]) * weight[i];
          sum_u += u;
          sum_uh = fused(u, (load(total[i]) - mean) * rstd, sum_uh);
        }
        const T mean_u = sum_u / T(width), mean_uh = sum_uh / T(width);
#pragma omp simd
        for (std::int64_t i = 0; i < width; ++i) {
          const T u = load(d_normed[i]) * weight[i], h = (load(total[i]) - mean) * rstd;
          store(d_total[i], load(d_total[i]) + layer_norm_gradient(u, h, rstd, mean_u, mean_uh));
        }
      }
    }
  }

  static constexpr LayerNormKernels kernels{forward, backward};
};

}  // namespace

template <>
const ByStorage<LayerNormKernels> Compiled<LayerNormKernels>::PF_ISA = by_storage<LayerNorm>();

}  // namespace prograd::cpu
