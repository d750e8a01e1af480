// ||a||^2, <a,b>, ||b||^2 of every unit. Each chunk has a partial sum; a unit's are added in the order of the chunks.
#pragma once

#include "chunks.cuh"
#include "reduce.cuh"

namespace prograd::cuda {

template <typename A>
using Entries = Sums<A, 3>;

// Of one chunk. keep: also put its gradients into shared memory.
template <typename T>
__device__ __forceinline__ Entries<Acc<T>> chunk_entries(const Table& table, const Chunk& chunk, const float* grad_scale,
                                                         bool keep) {
  Entries<Acc<T>> sums;
#pragma unroll
  for (int p = 0; p < kParts<T>; ++p) {
    Gradients<T> part;
    part.read(table, chunk, p);
    if (keep) keep_part(p, part);
    Acc<T> a[kVector<T>], b[kVector<T>];
    part.widened(grad_scale, a, b);
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

// One block for each chunk; the last block of a unit adds up its chunks. tickets: one per unit, 0 at the start.
template <typename T>
__global__ void __launch_bounds__(kThreads, kBlocks<T>)
    gram_kernel(PF_CONSTANT Table table, Acc<T>* entries, Acc<T>* partials, unsigned* tickets, const float* grad_scale) {
  const Chunk chunk = find_chunk(table, blockIdx.x);
  const auto sums = chunk_entries<T>(table, chunk, grad_scale, false);
  if (chunk.number == 1) {
    write_entries(entries, chunk.unit, sums);
    return;
  }
  write_entries(partials, chunk.index, sums);
  if (is_last_block(tickets + chunk.unit, unsigned(chunk.number))) {
    write_entries(entries, chunk.unit, unit_entries(partials, chunk));
  }
}

// What the operators on lists of tensors need besides their arguments.
template <typename A>
struct Workspace {
  A* partials;        // three for each chunk
  unsigned* tickets;  // one for each unit and one for each table, 0 at the start
  size_t ticket_bytes, bytes;

  Workspace(void* memory, const std::vector<Table>& tables, int64_t units) {
    const int64_t chunks = tables.empty() ? 0 : tables[0].chunks_of_all;
    partials = static_cast<A*>(memory);
    tickets = reinterpret_cast<unsigned*>(partials + 3 * chunks);
    ticket_bytes = sizeof(unsigned) * size_t(units + int64_t(tables.size()));
    bytes = sizeof(A) * size_t(3 * chunks) + ticket_bytes;
  }
};

inline int64_t count_units(const Tensor* tensors, int count, Scope scope) {
  int64_t units = scope == Scope::global ? 1 : 0;
  if (scope != Scope::global)
    for (int t = 0; t < count; ++t) units += tensors[t].units;
  return units;
}

template <typename T>
void launch_gram(const Table& table, Acc<T>* entries, const Workspace<Acc<T>>& workspace, const float* grad_scale,
                 void* stream) {
  if (table.chunks() == 0) return;
  launch(gram_kernel<T>, table.chunks(), table.threads, 0, false, stream, table, entries, workspace.partials,
         workspace.tickets, grad_scale);
}

}  // namespace prograd::cuda
