// Projection and update. Where the whole list has few enough elements, one launch measures the conflict and updates:
// both gradients are read once and stay in shared memory in between. Further lists are measured by gram_kernel first.
#pragma once

#include "../math.h"
#include "gram.cuh"

namespace prograd::cuda {

// What is done with the projected gradient g of a chunk: a Rule has
//   Context        what the whole chunk needs, made by one thread
//   context(...)   makes it
//   apply(...)     uses it for one run of elements
//   kSteps         whether it counts steps

// task = g
template <typename T>
struct StoreTask {
  static constexpr bool kSteps = false;
  struct Context {};
  __device__ Context context(const Tensor&) const { return {}; }

  __device__ __forceinline__ void apply(const Context&, const Tensor& tensor, int64_t at, int valid, bool aligned,
                                        const Acc<T> (&g)[kVector<T>]) const {
    store(static_cast<T*>(tensor.task) + at, g, valid, aligned);
  }
};

__device__ inline double rate(const LearningRate& lr) { return lr.tensor ? double(*lr.tensor) : lr.value; }

// M: storage of the moments.
template <typename T, typename M>
struct AdamWRule {
  static constexpr bool kSteps = true;
  using Context = AdamW<Acc<T>>;
  AdamWSettings settings;

  __device__ Context context(const Tensor& tensor) const {
    return Context::at(double(*tensor.step) + 1, rate(settings.lr), settings.beta1, settings.beta2, settings.eps,
                       settings.weight_decay);
  }

  __device__ __forceinline__ void apply(const Context& rule, const Tensor& tensor, int64_t at, int valid, bool aligned,
                                        const Acc<T> (&g)[kVector<T>]) const {
    constexpr int N = kVector<T>;
    T* param = static_cast<T*>(tensor.param) + at;
    M* exp_avg = static_cast<M*>(tensor.state[0]) + at;
    M* exp_avg_sq = static_cast<M*>(tensor.state[1]) + at;
    M* max_exp_avg_sq = static_cast<M*>(tensor.state[2]) + at;
    Acc<T> p[N], m[N], v[N], largest[N];
    load(p, param, valid, aligned);
    load(m, exp_avg, valid, aligned);
    load(v, exp_avg_sq, valid, aligned);
#pragma unroll
    for (int i = 0; i < N; ++i) {
      m[i] = rule.exp_avg(m[i], g[i]);
      v[i] = rule.exp_avg_sq(v[i], g[i]);
    }
    store(exp_avg, m, valid, aligned);
    store(exp_avg_sq, v, valid, aligned);
    if (tensor.state[2]) {  // amsgrad
      load(largest, max_exp_avg_sq, valid, aligned);
#pragma unroll
      for (int i = 0; i < N; ++i) v[i] = larger(v[i], largest[i]);
      store(max_exp_avg_sq, v, valid, aligned);
    }
#pragma unroll
    for (int i = 0; i < N; ++i) p[i] = rule.parameter(p[i], m[i], v[i]);
    store(param, p, valid, aligned);
  }
};

template <typename T, typename M>
struct SGDRule {
  static constexpr bool kSteps = false;
  using Context = SGD<Acc<T>>;
  SGDSettings settings;

  __device__ Context context(const Tensor&) const {
    using A = Acc<T>;
    return {A(rate(settings.lr)), A(settings.momentum),  A(1 - settings.dampening), A(settings.weight_decay),
            settings.nesterov,    settings.first};
  }

  __device__ __forceinline__ void apply(const Context& rule, const Tensor& tensor, int64_t at, int valid, bool aligned,
                                        const Acc<T> (&g)[kVector<T>]) const {
    constexpr int N = kVector<T>;
    T* param = static_cast<T*>(tensor.param) + at;
    M* buffer = static_cast<M*>(tensor.state[0]) + at;
    Acc<T> p[N], direction[N], m[N] = {};
    load(p, param, valid, aligned);
#pragma unroll
    for (int i = 0; i < N; ++i) direction[i] = rule.decayed(p[i], g[i]);
    if (tensor.state[0]) {
      if (!rule.first) load(m, buffer, valid, aligned);
#pragma unroll
      for (int i = 0; i < N; ++i) {
        m[i] = rule.buffer(m[i], direction[i]);
        direction[i] = rule.direction(m[i], direction[i]);
      }
      store(buffer, m, valid, aligned);
    }
#pragma unroll
    for (int i = 0; i < N; ++i) p[i] = rule.parameter(p[i], direction[i]);
    store(param, p, valid, aligned);
  }
};

// How a launch of update_kernel comes by the coefficients.
enum class Source {
  given,      // coefficients, or entries that gram_kernel has written
  own_chunk,  // measured here; every unit is one chunk of one block
  grid,       // measured here; the grid waits for all chunks: a cooperative launch
};

template <typename A>
struct Plan {
  Source source;
  bool kept;  // measured here, and each block has one chunk: shared memory keeps its gradients in between
  const A* coefficients;
  A* entries;
  A* partials;
  unsigned* ticket;
  A lambda;
  const float* grad_scale;
  const float* found_inf;
  bool maximize;
};

// alpha and beta of a chunk; called by whole blocks. Writes the entries of units that were measured in parts.
template <typename A>
__device__ __forceinline__ void chunk_coefficients(const Plan<A>& plan, const Chunk& chunk, A& alpha, A& beta) {
  if (plan.coefficients) {
    alpha = plan.coefficients[2 * chunk.unit];
    beta = plan.coefficients[2 * chunk.unit + 1];
    return;
  }
  Entries<A> sums;
  if (plan.source == Source::grid && chunk.number > 1) {
    sums = unit_entries(plan.partials, chunk);
    if (chunk.index == chunk.first) write_entries(plan.entries, chunk.unit, sums);
  } else {
    sums = read_entries(plan.entries, chunk.unit);
  }
  alpha = A(1);
  beta = conflict_beta(sums.values[1], sums.values[2], plan.lambda);
}

template <typename T, typename Rule>
__global__ void __launch_bounds__(kThreads, kBlocks<T>)
    update_kernel(PF_CONSTANT Table table, PF_CONSTANT Plan<Acc<T>> plan, PF_CONSTANT Rule rule) {
  using A = Acc<T>;
  PF_SHARED(typename Rule::Context, context);

  if (plan.source != Source::given) {
    if (Rule::kSteps && plan.source == Source::grid && blockIdx.x == 0 && threadIdx.x == 0) *plan.ticket = 0;
    for (int64_t i = blockIdx.x; i < table.chunks(); i += gridDim.x) {
      const Chunk chunk = find_chunk(table, i);
      const Entries<A> sums = chunk_entries<T>(table, chunk, plan.grad_scale, plan.kept);
      if (chunk.number == 1) write_entries(plan.entries, chunk.unit, sums);
      else write_entries(plan.partials, chunk.index, sums);
    }
    if (plan.source == Source::grid) cooperative_groups::this_grid().sync();
    else __syncthreads();
  }

  const bool skip = plan.found_inf && *plan.found_inf > 0.0f;
  for (int64_t i = blockIdx.x; i < table.chunks(); i += gridDim.x) {
    const Chunk chunk = find_chunk(table, i);
    const Tensor& tensor = table.tensors[chunk.tensor];
    A alpha, beta;
    chunk_coefficients(plan, chunk, alpha, beta);
    __syncthreads();  // context may still be read for the previous chunk
    if (threadIdx.x == 0) context = rule.context(tensor);
    __syncthreads();
    const bool untouched = std::is_same_v<Rule, StoreTask<T>> && alpha == A(1) && beta == A(0);
    if (skip || untouched) continue;
#pragma unroll 1  // unrolled, it would need the registers of a second block
    for (int p = 0; p < kParts<T>; ++p) {
      Gradients<T> part;
      if (plan.kept) part = kept_part<T>(p);
      else part.read(table, chunk, p);
      A g[kVector<T>], b[kVector<T>];
      part.widened(plan.grad_scale, g, b);
#pragma unroll
      for (int i = 0; i < kVector<T>; ++i) {
        g[i] = projected(g[i], b[i], alpha, beta);
        if (plan.maximize) g[i] = -g[i];
      }
      const int at = part_begin<T>(p);
      rule.apply(context, tensor, chunk.offset + at, chunk.size - at, table.aligned[chunk.tensor], g);
    }
  }

  if constexpr (Rule::kSteps) {  // only when no block will read them again
    if (is_last_block(plan.ticket, gridDim.x) && !skip) {
      for (int t = threadIdx.x; t < table.count; t += blockDim.x) *table.tensors[t].step += 1;
    }
  }
}

// Beyond this many elements (32 MB of fp32 gradients, about what an L2 cache keeps) measuring and updating are two launches.
constexpr int64_t kOneLaunch = int64_t(1) << 22;

inline Source source_of(const Table& table, const Projection& projection) {
  if (projection.coefficients || (table.global && table.chunks() < table.chunks_of_all)) return Source::given;
  if (!table.split_units) return Source::own_chunk;
  return table.elements <= kOneLaunch ? Source::grid : Source::given;
}

template <typename T, typename Rule>
void launch_update(const Tensor* tensors, int count, const Projection& projection, const Rule& rule, void* memory,
                   void* stream) {
  using A = Acc<T>;
  const auto tables = make_tables(tensors, count, projection.scope, kVector<T>);
  const int64_t units = count_units(tensors, count, projection.scope);
  const Workspace<A> workspace(memory, tables, units);
  A* entries = static_cast<A*>(projection.entries);
  const auto kernel = update_kernel<T, Rule>;
  const auto alone = [&](const Table& table) {  // a block alone needs no ticket, and a cooperative launch clears its own
    return table.chunks() <= 1 || source_of(table, projection) == Source::grid;
  };
  if (!std::all_of(tables.begin(), tables.end(), alone)) {
    fill_zero(workspace.tickets, workspace.ticket_bytes, stream);
  }
  if (!projection.coefficients) {
    for (const Table& table : tables) {
      if (source_of(table, projection) == Source::given) {
        launch_gram<T>(table, entries, workspace, projection.grad_scale, stream);
      }
    }
  }
  for (size_t i = 0; i < tables.size(); ++i) {
    const Table& table = tables[i];
    const Source source = source_of(table, projection);
    int64_t blocks = std::max<int64_t>(table.chunks(), 1);
    size_t shared = source == Source::given ? 0 : kept_bytes<T>(table.threads);
    if (shared > max_shared_bytes()) shared = 0;
    if (source == Source::grid && resident_blocks(kernel, table.threads, shared) < blocks) shared = 0;
    if (source == Source::grid) blocks = std::min(blocks, resident_blocks(kernel, table.threads, shared));
    const Plan<A> plan{source,
                       shared > 0,
                       static_cast<const A*>(projection.coefficients),
                       entries,
                       workspace.partials,
                       workspace.tickets + units + i,
                       A(projection.lambda),
                       projection.grad_scale,
                       projection.found_inf,
                       projection.maximize};
    launch(kernel, blocks, table.threads, shared, source == Source::grid, stream, table, plan, rule);
  }
}

}  // namespace prograd::cuda
