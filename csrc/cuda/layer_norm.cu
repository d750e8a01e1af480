#include "layer_norm.cuh"
#include "storage.cuh"

namespace prograd::cuda {

void add_layer_norm(Storage storage, const void* x, const void* branch, const void* weight, const void* bias,
                    double eps, int64_t rows, int64_t columns, void* total, void* normed, void* statistics,
                    void* stream) {
  with_storage(storage, [&](auto type) {
    using T = typename decltype(type)::type;
    launch_add_layer_norm(static_cast<const T*>(x), static_cast<const T*>(branch), static_cast<const Acc<T>*>(weight),
                          static_cast<const Acc<T>*>(bias), eps, rows, columns, static_cast<T*>(total),
                          static_cast<T*>(normed), static_cast<Acc<T>*>(statistics), stream);
  });
}

void layer_norm_backward(Storage storage, void* d_total, const void* d_normed, const void* total,
                         const void* statistics, const void* weight, int64_t cotangents, int64_t rows,
                         int64_t columns, void* stream) {
  with_storage(storage, [&](auto type) {
    using T = typename decltype(type)::type;
    launch_layer_norm_backward(static_cast<T*>(d_total), static_cast<const T*>(d_normed), static_cast<const T*>(total),
                               static_cast<const Acc<T>*>(statistics), static_cast<const Acc<T>*>(weight), cotangents,
                               rows, columns, stream);
  });
}

}  // namespace prograd::cuda
