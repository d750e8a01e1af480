#include "attention.cuh"
#include "attention_backward.cuh"
#include "storage.cuh"

namespace prograd::cuda {

void shared_prefix_attention(Storage storage, const Attention& attention, const Rows& out, void* stream) {
  with_storage(storage, [&](auto type) {
    launch_attention<typename decltype(type)::type>(attention, out, stream);
  });
}

size_t shared_prefix_attention_backward_workspace(Storage storage, const Attention& attention) {
  return storage == Storage::float64 ? AttentionWorkspace<double>(attention).bytes()
                                     : AttentionWorkspace<float>(attention).bytes();
}

void shared_prefix_attention_backward(Storage storage, const Attention& attention, int64_t cotangents,
                                      const Rows& gradient, const Rows& d_query, const Rows& d_key_value,
                                      const Rows& d_prefix, void* workspace, void* stream) {
  with_storage(storage, [&](auto type) {
    launch_attention_backward<typename decltype(type)::type>(attention, cotangents, gradient, d_query, d_key_value,
                                                             d_prefix, workspace, stream);
  });
}

}  // namespace prograd::cuda
