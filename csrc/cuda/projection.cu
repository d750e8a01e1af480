// Gram entries and projection of lists of tensors.
#include "projection.h"

#include "projection.cuh"
#include "storage.cuh"

namespace prograd::cuda {

// One block for each chunk; the last block of a unit adds up its chunks. tickets: one per unit, 0 at the start.
template <typename T, int kCapacity>
__global__ void __launch_bounds__(kThreads, kBlocks<T>)
    gram_kernel(PF_CONSTANT Table<kCapacity> table, Accumulation<T>* entries, Accumulation<T>* partials,
                unsigned* tickets) {
  const Chunk chunk = find_chunk(table, blockIdx.x);
  const auto sums = chunk_entries<T>(table, chunk, false);
  if (chunk.number == 1) {
    write_entries(entries, chunk.unit, sums);
    return;
  }
  write_entries(partials, chunk.index, sums);
  if (is_last_block(tickets + chunk.unit, unsigned(chunk.number))) {
    write_entries(entries, chunk.unit, unit_entries(partials, chunk));
  }
}

template <typename T, int kCapacity>
void launch_gram(const Table<kCapacity>& table, Accumulation<T>* entries, const Workspace<Accumulation<T>>& workspace,
                 void* stream) {
  if (table.chunks() == 0) return;
  launch(gram_kernel<T, kCapacity>, table.chunks(), table.threads, 0, false, stream, table, entries, workspace.partials,
         workspace.unit_tickets);
}

// For updates.cu.
#define PF_FOR_TABLES_OF(capacity)                                                                     \
  template void launch_gram<double>(const Table<capacity>&, double*, const Workspace<double>&, void*); \
  template void launch_gram<float>(const Table<capacity>&, float*, const Workspace<float>&, void*);    \
  template void launch_gram<bfloat16>(const Table<capacity>&, float*, const Workspace<float>&, void*); \
  template void launch_gram<float16>(const Table<capacity>&, float*, const Workspace<float>&, void*)
PF_FOR_TABLES_OF(kFewTensors);
#if !defined(CUDART_VERSION) || CUDART_VERSION >= 12010
PF_FOR_TABLES_OF(kManyTensors);
#endif

// ---- the operators

size_t tensors_workspace(Storage storage, const Tensor* tensors, int count, Scope scope) {
  return with_accumulation(storage, [&](auto type) {
    return Workspace<typename decltype(type)::type>(nullptr, tensors, count, scope).bytes;
  });
}

void gram(Storage storage, const Tensor* tensors, int count, Scope scope, void* entries, void* memory, void* stream) {
  with_storage(storage, [&](auto type) {
    using T = typename decltype(type)::type;
    using A = Accumulation<T>;
    const Counts all(tensors, count, scope);
    const Workspace<A> workspace(memory, tensors, count, scope);
    if (all.chunks == 0) return fill_zero(entries, sizeof(A) * 3 * all.units, stream);
    if (all.chunks > all.units) fill_zero(workspace.unit_tickets, workspace.ticket_bytes, stream);
    with_tables(tensors, count, scope, kVector<T>, [&](const auto& tables) {
      for (const auto& table : tables) launch_gram<T>(table, static_cast<A*>(entries), workspace, stream);
    });
  });
}

void project(Storage storage, const Tensor* tensors, int count, const Projection& projection, void* workspace,
             void* stream) {
  with_storage(storage, [&](auto type) {
    using T = typename decltype(type)::type;
    update<T>(tensors, count, projection, StoreProjected<T>{}, workspace, stream);
  });
}

}  // namespace prograd::cuda
