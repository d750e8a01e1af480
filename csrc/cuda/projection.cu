// Gram entries and projection of lists of tensors.
#include "projection.h"

#include "projection.cuh"
#include "storage.cuh"

namespace prograd::cuda {

// One block for each chunk; the last block of a unit adds up its chunks. tickets: one per unit, 0 at the start.
template <typename T>
__global__ void __launch_bounds__(kThreads, kBlocks<T>)
    gram_kernel(PF_CONSTANT Table table, Accumulation<T>* entries, Accumulation<T>* partials, unsigned* tickets) {
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

template <typename T>
void launch_gram(const Table& table, Accumulation<T>* entries, const Workspace<Accumulation<T>>& workspace,
                 void* stream) {
  if (table.chunks() == 0) return;
  launch(gram_kernel<T>, table.chunks(), table.threads, 0, false, stream, table, entries, workspace.partials,
         workspace.tickets);
}

// For updates.cu.
template void launch_gram<double>(const Table&, double*, const Workspace<double>&, void*);
template void launch_gram<float>(const Table&, float*, const Workspace<float>&, void*);
template void launch_gram<bfloat16>(const Table&, float*, const Workspace<float>&, void*);
template void launch_gram<float16>(const Table&, float*, const Workspace<float>&, void*);

// ---- the operators

size_t tensors_workspace(Storage storage, const Tensor* tensors, int count, Scope scope) {
  const auto tables = make_tables(tensors, count, scope, 1);  // the cuts do not depend on the width of an access
  const int64_t units = count_units(tensors, count, scope);
  return with_accumulation(
      storage, [&](auto type) { return Workspace<typename decltype(type)::type>(nullptr, tables, units).bytes; });
}

void gram(Storage storage, const Tensor* tensors, int count, Scope scope, void* entries, void* memory, void* stream) {
  with_storage(storage, [&](auto type) {
    using T = typename decltype(type)::type;
    const auto tables = make_tables(tensors, count, scope, kVector<T>);
    const int64_t units = count_units(tensors, count, scope);
    const Workspace<Accumulation<T>> workspace(memory, tables, units);
    if (tables.empty()) return fill_zero(entries, sizeof(Accumulation<T>) * 3 * units, stream);
    if (tables[0].chunks_of_all > units) fill_zero(workspace.tickets, workspace.ticket_bytes, stream);
    for (const Table& table : tables) {
      launch_gram<T>(table, static_cast<Accumulation<T>*>(entries), workspace, stream);
    }
  });
}

void project(Storage storage, const Tensor* tensors, int count, Scope scope, const void* coefficients, void* workspace,
             void* stream) {
  const Projection projection{scope, coefficients, nullptr, 0.0, 0.0, nullptr, false};
  with_storage(storage, [&](auto type) {
    using T = typename decltype(type)::type;
    launch_update<T>(tensors, count, projection, StoreTask<T>{}, workspace, stream);
  });
}

}  // namespace prograd::cuda
