// Residual sum and layer norm, and the backward of both: one warp for each row, which it keeps in shared memory. A lane
// reads back its own packs alone, so that no barrier is needed.
#include "layer_norm.h"

#include "../formulas/layer_norm.h"
#include "reduce.cuh"
#include "storage.cuh"
#include "vector.cuh"

namespace prograd::cuda {

constexpr int kNormWarps = 4;  // rows of a block, at most

// What both kernels have in common.
template <typename T>
struct NormArguments {
  int64_t rows;
  int columns;
  bool aligned;  // every row of every matrix starts on 16 bytes, and the vectors do
  const Accumulation<T>* weight;
};

// The row of a warp, and the packs of it that a lane has: every 32nd.
template <typename T>
struct NormRow {
  using A = Accumulation<T>;
  static constexpr int N = kVector<T>;
  const NormArguments<T>& arguments;
  int64_t row = int64_t(blockIdx.x) * (blockDim.x / kWarp) + threadIdx.x / kWarp;
  int packs = (arguments.columns + N - 1) / N;

  // Shared memory of this warp for one row of every `arrays`, number `k` of them.
  __device__ Pack<T>* kept(int arrays, int k) const {
    return dynamic_shared<Pack<T>>() + (int64_t(threadIdx.x / kWarp) * arrays + k) * packs;
  }

  // visit(first column, number of valid columns, pack) for each pack of this lane.
  template <typename Visit>
  __device__ __forceinline__ void each_pack(Visit visit) const {
    for (int pack = int(threadIdx.x) % kWarp; pack < packs; pack += kWarp) {
      const int column = pack * N, left = arguments.columns - column;
      visit(column, left < N ? left : N, pack);
    }
  }
};

template <typename T>
__global__ void __launch_bounds__(kNormWarps* kWarp)
    add_layer_norm_kernel(PF_CONSTANT NormArguments<T> arguments, const T* x, const T* branch,
                          const Accumulation<T>* bias, Accumulation<T> eps, T* total, T* normed,
                          Accumulation<T>* statistics) {
  using A = Accumulation<T>;
  constexpr int N = kVector<T>;
  const NormRow<T> row{arguments};
  if (row.row >= arguments.rows) return;
  const int64_t start = row.row * arguments.columns;
  const A inverse_columns = A(1) / A(arguments.columns);
  Pack<T>* kept = row.kept(1, 0);

  A sum = 0;
  row.each_pack([&](int column, int valid, int pack) {
    A u[N], v[N];
    load(u, x + start + column, valid, arguments.aligned);
    load(v, branch + start + column, valid, arguments.aligned);
    Pack<T> stored;
#pragma unroll
    for (int i = 0; i < N; ++i) {
      narrow(stored.values[i], u[i] + v[i]);
      sum += widen(stored.values[i]);
    }
    kept[pack] = stored;
    write(total + start + column, stored, 0, valid, arguments.aligned);
  });
  const A mean = warp_sum(sum) * inverse_columns;

  A squares = 0;
  row.each_pack([&](int, int valid, int pack) {
    const Pack<T> t = kept[pack];
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const A centred = i < valid ? widen(t.values[i]) - mean : A(0);
      squares = fused(centred, centred, squares);
    }
  });
  const A rstd = A(1) / root(warp_sum(squares) * inverse_columns + eps);
  if (threadIdx.x % kWarp == 0) {
    statistics[2 * row.row] = mean;
    statistics[2 * row.row + 1] = rstd;
  }

  row.each_pack([&](int column, int valid, int pack) {
    const Pack<T> t = kept[pack];
    A w[N], b[N], values[N];
    load(w, arguments.weight + column, valid, arguments.aligned);
    load(b, bias + column, valid, arguments.aligned);
#pragma unroll
    for (int i = 0; i < N; ++i) values[i] = layer_normed(widen(t.values[i]), mean, rstd, w[i], b[i]);
    store(normed + start + column, values, valid, arguments.aligned);
  });
}

// d_total, d_normed: (cotangents, rows, columns). The row of `total` is read once for all cotangents.
template <typename T>
__global__ void __launch_bounds__(kNormWarps* kWarp)
    layer_norm_backward_kernel(PF_CONSTANT NormArguments<T> arguments, T* d_total, const T* d_normed, const T* total,
                               const Accumulation<T>* statistics, int64_t cotangents) {
  using A = Accumulation<T>;
  constexpr int N = kVector<T>;
  const NormRow<T> row{arguments};
  if (row.row >= arguments.rows) return;
  const A inverse_columns = A(1) / A(arguments.columns);
  const A mean = statistics[2 * row.row], rstd = statistics[2 * row.row + 1];
  Pack<T>* kept_total = row.kept(2, 0);
  Pack<T>* kept_gradient = row.kept(2, 1);

  for (int64_t k = 0; k < cotangents; ++k) {
    const int64_t start = (k * arguments.rows + row.row) * arguments.columns;
    A sum_u = 0, sum_uh = 0;
    row.each_pack([&](int column, int valid, int pack) {
      if (k == 0) {
        read(kept_total[pack], total + row.row * arguments.columns + column, 0, valid, arguments.aligned);
      }
      Pack<T> gradient;
      read(gradient, d_normed + start + column, 0, valid, arguments.aligned);
      kept_gradient[pack] = gradient;
      const Pack<T> t = kept_total[pack];
      A w[N];
      load(w, arguments.weight + column, valid, arguments.aligned);
#pragma unroll
      for (int i = 0; i < N; ++i) {
        const A u = widen(gradient.values[i]) * w[i];
        sum_u += u;
        sum_uh = fused(u, (widen(t.values[i]) - mean) * rstd, sum_uh);
      }
    });
    const A mean_u = warp_sum(sum_u) * inverse_columns, mean_uh = warp_sum(sum_uh) * inverse_columns;
    row.each_pack([&](int column, int valid, int pack) {
      const Pack<T> t = kept_total[pack], gradient = kept_gradient[pack];
      A w[N], values[N];
      load(w, arguments.weight + column, valid, arguments.aligned);
      load(values, d_total + start + column, valid, arguments.aligned);
#pragma unroll
      for (int i = 0; i < N; ++i) {
        const A h = (widen(t.values[i]) - mean) * rstd, u = widen(gradient.values[i]) * w[i];
        values[i] += layer_norm_gradient(u, h, rstd, mean_u, mean_uh);
      }
      store(d_total + start + column, values, valid, arguments.aligned);
    });
  }
}

// How many rows of `arrays` matrices fit into the shared memory of a block, and the launch that this makes.
template <typename T>
struct NormLaunch {
  size_t row_bytes;
  int warps;

  NormLaunch(int64_t columns, int arrays)
      : row_bytes(arrays * sizeof(Pack<T>) * ((columns + kVector<T> - 1) / kVector<T>)),
        warps(int(std::min<size_t>(kNormWarps, max_shared_bytes() / std::max<size_t>(row_bytes, 1)))) {
    if (warps == 0) throw std::invalid_argument("layer norm: a row does not fit into shared memory");
  }
  int64_t blocks(int64_t rows) const { return (rows + warps - 1) / warps; }
};

template <typename T, typename... Pointers>
bool rows_are_aligned(int64_t columns, Pointers... pointers) {
  return columns % kVector<T> == 0 && (... && is_aligned(pointers));
}

template <typename T>
void launch_add_layer_norm(const T* x, const T* branch, const Accumulation<T>* weight, const Accumulation<T>* bias,
                           double eps, int64_t rows, int64_t columns, T* total, T* normed, Accumulation<T>* statistics,
                           void* stream) {
  if (rows == 0) return;
  const NormLaunch<T> plan(columns, 1);
  const bool aligned = rows_are_aligned<T>(columns, x, branch, weight, bias, total, normed);
  const NormArguments<T> arguments{rows, int(columns), aligned, weight};
  launch(add_layer_norm_kernel<T>, plan.blocks(rows), plan.warps * kWarp, plan.warps * plan.row_bytes, false, stream,
         arguments, x, branch, bias, Accumulation<T>(eps), total, normed, statistics);
}

template <typename T>
void launch_layer_norm_backward(T* d_total, const T* d_normed, const T* total, const Accumulation<T>* statistics,
                                const Accumulation<T>* weight, int64_t cotangents, int64_t rows, int64_t columns,
                                void* stream) {
  if (rows == 0) return;
  const NormLaunch<T> plan(columns, 2);
  const bool aligned = rows_are_aligned<T>(columns, d_total, d_normed, total, weight);
  const NormArguments<T> arguments{rows, int(columns), aligned, weight};
  launch(layer_norm_backward_kernel<T>, plan.blocks(rows), plan.warps * kWarp, plan.warps * plan.row_bytes, false,
         stream, arguments, d_total, d_normed, total, statistics, cotangents);
}

// ---- the operators

void add_layer_norm(Storage storage, const void* x, const void* branch, const void* weight, const void* bias,
                    double eps, int64_t rows, int64_t columns, void* total, void* normed, void* statistics,
                    void* stream) {
  with_storage(storage, [&](auto type) {
    using T = typename decltype(type)::type;
    launch_add_layer_norm(static_cast<const T*>(x), static_cast<const T*>(branch),
                          static_cast<const Accumulation<T>*>(weight), static_cast<const Accumulation<T>*>(bias), eps,
                          rows, columns, static_cast<T*>(total), static_cast<T*>(normed),
                          static_cast<Accumulation<T>*>(statistics), stream);
  });
}

void layer_norm_backward(Storage storage, void* d_total, const void* d_normed, const void* total,
                         const void* statistics, const void* weight, int64_t cotangents, int64_t rows, int64_t columns,
                         void* stream) {
  with_storage(storage, [&](auto type) {
    using T = typename decltype(type)::type;
    launch_layer_norm_backward(static_cast<T*>(d_total), static_cast<const T*>(d_normed), static_cast<const T*>(total),
                               static_cast<const Accumulation<T>*>(statistics),
                               static_cast<const Accumulation<T>*>(weight), cotangents, rows, columns, stream);
  });
}

}  // namespace prograd::cuda
