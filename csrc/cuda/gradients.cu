#include "storage.cuh"
#include "update.cuh"

namespace prograd::cuda {

namespace {

// Calls function(Type<T>{}, Type<M>{}) for the storage of the parameters and that of the moments.
template <typename Function>
void with_storages(Storage storage, Storage states, Function function) {
  with_storage(storage, [&](auto type) {
    using T = typename decltype(type)::type;
    if (states == storage) return function(type, type);
    if constexpr (sizeof(T) == 2) {
      if (states == Storage::float32) return function(type, Type<float>{});
    }
    throw std::invalid_argument("moments: expected the dtype of the parameters, or float32 for 16-bit parameters");
  });
}

}  // namespace

size_t tensors_workspace(Storage storage, const Tensor* tensors, int count, Scope scope) {
  const auto tables = make_tables(tensors, count, scope, 1);  // the cuts do not depend on the width of an access
  const int64_t units = count_units(tensors, count, scope);
  return storage == Storage::float64 ? Workspace<double>(nullptr, tables, units).bytes
                                     : Workspace<float>(nullptr, tables, units).bytes;
}

void gram(Storage storage, const Tensor* tensors, int count, Scope scope, void* entries, void* memory, void* stream) {
  with_storage(storage, [&](auto type) {
    using T = typename decltype(type)::type;
    const auto tables = make_tables(tensors, count, scope, kVector<T>);
    const int64_t units = count_units(tensors, count, scope);
    const Workspace<Acc<T>> workspace(memory, tables, units);
    if (tables.empty()) return fill_zero(entries, sizeof(Acc<T>) * 3 * units, stream);
    if (tables[0].chunks_of_all > units) fill_zero(workspace.tickets, workspace.ticket_bytes, stream);
    for (const Table& table : tables) {
      launch_gram<T>(table, static_cast<Acc<T>*>(entries), workspace, nullptr, stream);
    }
  });
}

void project(Storage storage, const Tensor* tensors, int count, Scope scope, const void* coefficients, void* workspace,
             void* stream) {
  const Projection projection{scope, coefficients, nullptr, 0.0, nullptr, nullptr, false};
  with_storage(storage, [&](auto type) {
    using T = typename decltype(type)::type;
    launch_update<T>(tensors, count, projection, StoreTask<T>{}, workspace, stream);
  });
}

void adamw(Storage storage, Storage states, const Tensor* tensors, int count, const Projection& projection,
           const AdamWSettings& settings, void* workspace, void* stream) {
  with_storages(storage, states, [&](auto type, auto state) {
    using T = typename decltype(type)::type;
    using M = typename decltype(state)::type;
    launch_update<T>(tensors, count, projection, AdamWRule<T, M>{settings}, workspace, stream);
  });
}

void sgd(Storage storage, Storage states, const Tensor* tensors, int count, const Projection& projection,
         const SGDSettings& settings, void* workspace, void* stream) {
  with_storages(storage, states, [&](auto type, auto state) {
    using T = typename decltype(type)::type;
    using M = typename decltype(state)::type;
    launch_update<T>(tensors, count, projection, SGDRule<T, M>{settings}, workspace, stream);
  });
}

}  // namespace prograd::cuda
