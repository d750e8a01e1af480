// Gram entries, projection, and what is then done with the projected gradient. Where the whole list has few enough
// elements, one launch measures the conflict and updates: both gradients are read once and stay in shared memory in
// between. Further lists are measured by gram_kernel first.
#pragma once

#include "../formulas/projection.h"
#include "projection.h"
#include "reduce.cuh"
#include "tensor_lists.cuh"

namespace prograd::cuda {

// ---- Gram entries: ||a||^2, <a,b>, ||b||^2 of every unit. Those of its chunks are added in their order.

template <typename A>
using Entries = Sums<A, 3>;

// Of one chunk. keep: also put its gradients into shared memory.
template <typename T, int kCapacity>
__device__ __forceinline__ Entries<Accumulation<T>> chunk_entries(const Table<kCapacity>& table, const Chunk& chunk,
                                                                  bool keep) {
  Entries<Accumulation<T>> sums;
#pragma unroll
  for (int p = 0; p < kParts<T>; ++p) {
    Gradients<T> part;
    part.read(table, chunk, p);
    if (keep) keep_part(p, part);
    Accumulation<T> a[kVector<T>], b[kVector<T>];
    part.widened(a, b);
#pragma unroll
    for (int i = 0; i < kVector<T>; ++i) {
      sums.values[0] += a[i] * a[i];
      sums.values[1] += a[i] * b[i];
      sums.values[2] += b[i] * b[i];
    }
  }
  return block_sum(sums);
}

template <typename A>
__device__ __forceinline__ void write_entries(A* rows, int64_t row, const Entries<A>& sums) {
  if (threadIdx.x != 0) return;
#pragma unroll
  for (int k = 0; k < 3; ++k) rows[3 * row + k] = sums.values[k];
}

template <typename A>
__device__ __forceinline__ Entries<A> read_entries(const A* rows, int64_t row) {
  Entries<A> sums;
#pragma unroll
  for (int k = 0; k < 3; ++k) sums.values[k] = rows[3 * row + k];
  return sums;
}

// The entries of a unit from those of its chunks; called by whole blocks.
template <typename A>
__device__ __forceinline__ Entries<A> unit_entries(const A* partials, const Chunk& chunk) {
  Entries<A> sums;
  for (int64_t i = threadIdx.x; i < chunk.number; i += blockDim.x) {
    const Entries<A> part = read_entries(partials, chunk.first + i);
#pragma unroll
    for (int k = 0; k < 3; ++k) sums.values[k] += part.values[k];
  }
  return block_sum(sums);
}

// Defined in projection.cu.
template <typename T, int kCapacity>
void launch_gram(const Table<kCapacity>& table, Accumulation<T>* entries, const Workspace<Accumulation<T>>& workspace,
                 void* stream);

// ---- projection

// What is done with the projected gradient g of a chunk: a Rule has
//   Context        what the whole chunk needs
//   context(...)   makes it; called by one whole warp, whose first lane has the result
//   apply(...)     uses it for one run of elements
//   kSteps         whether it counts steps

// param = g
template <typename T>
struct StoreProjected {
  static constexpr bool kSteps = false;
  struct Context {};
  __device__ Context context(const Operands&) const { return {}; }

  __device__ __forceinline__ void apply(const Context&, const Operands& tensor, int64_t at, int valid, bool aligned,
                                        const Accumulation<T> (&g)[kVector<T>]) const {
    store(static_cast<T*>(tensor.param) + at, g, valid, aligned);
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
  unsigned* step_ticket;
  A lambda, noise_floor;
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
  beta = conflict_beta(sums.values[0], sums.values[1], sums.values[2], plan.lambda, plan.noise_floor);
}

template <typename T, typename Rule, int kCapacity>
__global__ void __launch_bounds__(kThreads, kBlocks<T>)
    update_kernel(PF_CONSTANT Table<kCapacity> table, PF_CONSTANT Plan<Accumulation<T>> plan, PF_CONSTANT Rule rule) {
  using A = Accumulation<T>;
  PF_SHARED(typename Rule::Context, context);

  if (plan.source != Source::given) {
    if (Rule::kSteps && plan.source == Source::grid && blockIdx.x == 0 && threadIdx.x == 0) *plan.step_ticket = 0;
    for (int64_t i = blockIdx.x; i < table.chunks(); i += gridDim.x) {
      const Chunk chunk = find_chunk(table, i);
      const Entries<A> sums = chunk_entries<T>(table, chunk, plan.kept);
      if (chunk.number == 1) write_entries(plan.entries, chunk.unit, sums);
      else write_entries(plan.partials, chunk.index, sums);
    }
    if (plan.source == Source::grid) cooperative_groups::this_grid().sync();
    else __syncthreads();
  }

  const bool skip = plan.found_inf && *plan.found_inf > 0.0f;
  for (int64_t i = blockIdx.x; i < table.chunks(); i += gridDim.x) {
    const Chunk chunk = find_chunk(table, i);
    const Operands& tensor = table.tensors[chunk.tensor];
    A alpha, beta;
    chunk_coefficients(plan, chunk, alpha, beta);
    __syncthreads();  // context may still be read for the previous chunk
    if (threadIdx.x < kWarp) {
      const auto made = rule.context(tensor);
      if (threadIdx.x == 0) context = made;
    }
    __syncthreads();
    const bool in_place = std::is_same_v<Rule, StoreProjected<T>> && tensor.param == tensor.task;
    if (skip || (in_place && alpha == A(1) && beta == A(0))) continue;
#pragma unroll 1  // unrolled, it would need the registers of a second block
    for (int p = 0; p < kParts<T>; ++p) {
      Gradients<T> part;
      if (plan.kept) part = kept_part<T>(p);
      else part.read(table, chunk, p);
      A g[kVector<T>], b[kVector<T>];
      part.widened(g, b);
#pragma unroll
      for (int i = 0; i < kVector<T>; ++i) {
        g[i] = projected(g[i], b[i], alpha, beta);
        if (plan.maximize) g[i] = -g[i];
      }
      const int at = part_begin<T>(p);
      rule.apply(context, tensor, chunk.offset + at, chunk.size - at, table.aligned[chunk.tensor], g);
    }
    if (Rule::kSteps && table.one_chunk_each && threadIdx.x == 0) *tensor.step += 1;  // this block alone has read it
  }

  if constexpr (Rule::kSteps) {  // only when no block will read them again
    if (!table.one_chunk_each && is_last_block(plan.step_ticket, gridDim.x) && !skip) {
      for (int t = threadIdx.x; t < table.count; t += blockDim.x) *table.tensors[t].step += 1;
    }
  }
}

// Beyond so many elements (32 MB of fp32 gradients, about what an L2 cache keeps) measuring and updating are two
// launches.
constexpr int64_t kOneLaunch = int64_t(1) << 22;

template <int kCapacity>
Source source_of(const Table<kCapacity>& table, const Projection& projection) {
  if (projection.coefficients || (table.global && table.chunks() < table.chunks_of_all)) return Source::given;
  if (!table.split_units) return Source::own_chunk;
  return table.elements <= kOneLaunch ? Source::grid : Source::given;
}

// A ticket is drawn where blocks share a unit that gram_kernel measures, or a step; a cooperative launch clears its
// own.
template <typename Rule, int kCapacity>
bool draws_tickets(const Table<kCapacity>& table, const Projection& projection) {
  const Source source = source_of(table, projection);
  const bool of_units = source == Source::given && !projection.coefficients && table.split_units;
  const bool of_steps = Rule::kSteps && source != Source::grid && !table.one_chunk_each && table.chunks() > 1;
  return of_units || of_steps;
}

template <typename T, typename Rule, int kCapacity>
void launch_update(const Table<kCapacity>& table, const Projection& projection, const Rule& rule,
                   const Workspace<Accumulation<T>>& workspace, unsigned* step_ticket, void* stream) {
  using A = Accumulation<T>;
  const auto kernel = update_kernel<T, Rule, kCapacity>;
  const Source source = source_of(table, projection);
  int64_t blocks = std::max<int64_t>(table.chunks(), 1);
  size_t shared = source == Source::given ? 0 : kept_bytes<T>(table.threads);
  if (shared > max_shared_bytes()) shared = 0;
  if (source == Source::grid && resident_blocks(kernel, table.threads, shared) < blocks) shared = 0;
  if (source == Source::grid) blocks = std::min(blocks, resident_blocks(kernel, table.threads, shared));
  const Plan<A> plan{source,
                     shared > 0,
                     static_cast<const A*>(projection.coefficients),
                     static_cast<A*>(projection.entries),
                     workspace.partials,
                     step_ticket,
                     A(projection.lambda),
                     A(projection.noise_floor),
                     projection.found_inf,
                     projection.maximize};
  launch(kernel, blocks, table.threads, shared, source == Source::grid, stream, table, plan, rule);
}

template <typename T, typename Rule>
void update(const Tensor* tensors, int count, const Projection& projection, const Rule& rule, void* memory,
            void* stream) {
  using A = Accumulation<T>;
  const Workspace<A> workspace(memory, tensors, count, projection.scope);
  with_tables(tensors, count, projection.scope, kVector<T>, [&](const auto& tables) {
    const auto draws = [&](const auto& table) { return draws_tickets<Rule>(table, projection); };
    if (std::any_of(tables.begin(), tables.end(), draws)) {
      fill_zero(workspace.unit_tickets, workspace.ticket_bytes, stream);
    }
    for (const auto& table : tables) {
      if (source_of(table, projection) == Source::given && !projection.coefficients) {
        launch_gram<T>(table, static_cast<A*>(projection.entries), workspace, stream);
      }
    }
    unsigned* step_ticket = workspace.step_tickets;
    for (const auto& table : tables) launch_update<T>(table, projection, rule, workspace, step_ticket++, stream);
  });
}

}  // namespace prograd::cuda
