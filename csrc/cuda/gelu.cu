#include "gelu.cuh"
#include "storage.cuh"

namespace prograd::cuda {

void gelu(Storage storage, const void* x, int64_t size, Approximate approximate, void* out, void* stream) {
  with_storage(storage, [&](auto type) {
    using T = typename decltype(type)::type;
    launch_gelu(static_cast<const T*>(x), size, approximate, static_cast<T*>(out), stream);
  });
}

void gelu_backward(Storage storage, void* gradient, int64_t cotangents, const void* x, int64_t size,
                   Approximate approximate, void* stream) {
  with_storage(storage, [&](auto type) {
    using T = typename decltype(type)::type;
    launch_gelu_backward(static_cast<T*>(gradient), cotangents, static_cast<const T*>(x), size,
                         approximate, stream);
  });
}

}  // namespace prograd::cuda
