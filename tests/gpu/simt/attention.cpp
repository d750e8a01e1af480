#include "../../../csrc/cuda/attention.h"

#include "harness.h"

PF_EXPORT const char* simt_shared_prefix_attention(Storage storage, const Attention* attention, const Rows* out) {
  return caught([&] { shared_prefix_attention(storage, *attention, *out, nullptr); });
}

PF_EXPORT const char* simt_shared_prefix_attention_backward(Storage storage, const Attention* attention,
                                                            int64_t cotangents, const Rows* gradient,
                                                            const Rows* d_query, const Rows* d_key_value,
                                                            const Rows* d_prefix) {
  return with_workspace(shared_prefix_attention_backward_workspace(storage, *attention, cotangents), [&](void* workspace) {
    shared_prefix_attention_backward(storage, *attention, cotangents, *gradient, *d_query, *d_key_value, *d_prefix,
                                     workspace, nullptr);
  });
}
