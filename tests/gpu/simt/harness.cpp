// The operators of csrc/cuda on the CPU, for Python's ctypes: csrc/cuda/kernels.h, run by simt.h. Each function returns
// what went wrong, or null.
#include "../../csrc/cuda/kernels.h"
#include "simt.h"

#define PF_EXPORT __attribute__((visibility("default")))

using namespace prograd::cuda;
using prograd::Approximate;

namespace {

std::string message;

template <typename Run>
const char* caught(Run run) {
  try {
    run();
  } catch (const std::exception& error) {
    message = error.what();
    return message.c_str();
  }
  return nullptr;
}

// Filled with what no kernel may rely on, and with bytes behind it that no kernel may change.
class Workspace {
 public:
  explicit Workspace(size_t size) { simt::poison(bytes_, size); }
  void* data() { return bytes_.data() + 16; }
  void check() const {
    if (!simt::intact(bytes_)) throw simt::Fault("write outside of the workspace");
  }

 private:
  std::vector<unsigned char> bytes_;
};

template <typename Run>
const char* with_workspace(size_t size, Run run) {
  return caught([&] {
    Workspace workspace(size);
    run(workspace.data());
    workspace.check();
  });
}

}  // namespace

extern "C" {

PF_EXPORT void simt_schedule(int order, uint64_t seed, unsigned resident_blocks) {
  simt::schedule = {static_cast<simt::Order>(order), seed, resident_blocks};
}

// How many kernels the last operator launched.
PF_EXPORT unsigned simt_launches() { return std::exchange(simt::launches, 0); }

PF_EXPORT const char* simt_gram(Storage storage, const Tensor* tensors, int count, Scope scope, void* entries) {
  return with_workspace(tensors_workspace(storage, tensors, count, scope), [&](void* workspace) {
    gram(storage, tensors, count, scope, entries, workspace, nullptr);
  });
}

PF_EXPORT const char* simt_project(Storage storage, const Tensor* tensors, int count, Scope scope, const void* coefficients) {
  return with_workspace(tensors_workspace(storage, tensors, count, scope), [&](void* workspace) {
    project(storage, tensors, count, scope, coefficients, workspace, nullptr);
  });
}

PF_EXPORT const char* simt_adamw(Storage storage, Storage states, const Tensor* tensors, int count, const Projection* projection,
                       const AdamWSettings* settings) {
  return with_workspace(tensors_workspace(storage, tensors, count, projection->scope), [&](void* workspace) {
    adamw(storage, states, tensors, count, *projection, *settings, workspace, nullptr);
  });
}

PF_EXPORT const char* simt_sgd(Storage storage, Storage states, const Tensor* tensors, int count, const Projection* projection,
                     const SGDSettings* settings) {
  return with_workspace(tensors_workspace(storage, tensors, count, projection->scope), [&](void* workspace) {
    sgd(storage, states, tensors, count, *projection, *settings, workspace, nullptr);
  });
}

PF_EXPORT const char* simt_dual_loss(Storage storage, const void* student, const void* teacher, int64_t rows, int64_t classes,
                           const LossOptions* options) {
  return with_workspace(dual_loss_workspace(storage, rows), [&](void* workspace) {
    dual_loss(storage, student, teacher, rows, classes, *options, workspace, nullptr);
  });
}

PF_EXPORT const char* simt_linear_dual_loss(Storage storage, const void* features, const void* student, const void* teacher,
                                  int64_t rows, int64_t classes, int64_t width, double scale,
                                  const LossOptions* options) {
  return with_workspace(linear_dual_loss_workspace(storage, rows, classes), [&](void* workspace) {
    linear_dual_loss(storage, features, student, teacher, rows, classes, width, scale, *options, workspace, nullptr);
  });
}

PF_EXPORT const char* simt_sampled_cross_entropy(Storage storage, const void* logits, const int64_t* labels, int64_t samples,
                                       int64_t rows, int64_t classes, Reduction reduction, void* losses, void* cotangents) {
  return with_workspace(samples_workspace(storage, samples, rows), [&](void* workspace) {
    sampled_cross_entropy(storage, logits, labels, samples, rows, classes, reduction, losses, cotangents, workspace, nullptr);
  });
}

PF_EXPORT const char* simt_sampled_log_probs(Storage storage, const void* logits, int64_t samples, int64_t rows, int64_t classes,
                                   void* log_probs) {
  return with_workspace(samples_workspace(storage, samples, rows), [&](void* workspace) {
    sampled_log_probs(storage, logits, samples, rows, classes, log_probs, workspace, nullptr);
  });
}

PF_EXPORT const char* simt_difference_loss(Storage storage, const void* prediction, const void* target, int64_t size,
                                 const DifferenceOptions* options) {
  return with_workspace(difference_loss_workspace(storage, size), [&](void* workspace) {
    difference_loss(storage, prediction, target, size, *options, workspace, nullptr);
  });
}

PF_EXPORT const char* simt_shared_prefix_attention(Storage storage, const Attention* attention, const Rows* out) {
  return caught([&] { shared_prefix_attention(storage, *attention, *out, nullptr); });
}

PF_EXPORT const char* simt_shared_prefix_attention_backward(Storage storage, const Attention* attention,
                                                            int64_t cotangents, const Rows* gradient,
                                                            const Rows* d_query, const Rows* d_key_value,
                                                            const Rows* d_prefix) {
  return with_workspace(shared_prefix_attention_backward_workspace(storage, *attention), [&](void* workspace) {
    shared_prefix_attention_backward(storage, *attention, cotangents, *gradient, *d_query, *d_key_value, *d_prefix,
                                     workspace, nullptr);
  });
}

PF_EXPORT const char* simt_add_layer_norm(Storage storage, const void* x, const void* branch, const void* weight,
                                          const void* bias, double eps, int64_t rows, int64_t columns, void* total,
                                          void* normed, void* statistics) {
  return caught([&] {
    add_layer_norm(storage, x, branch, weight, bias, eps, rows, columns, total, normed, statistics, nullptr);
  });
}

PF_EXPORT const char* simt_layer_norm_backward(Storage storage, void* d_total, const void* d_normed, const void* total,
                                               const void* statistics, const void* weight, int64_t cotangents,
                                               int64_t rows, int64_t columns) {
  return caught([&] {
    layer_norm_backward(storage, d_total, d_normed, total, statistics, weight, cotangents, rows, columns, nullptr);
  });
}

PF_EXPORT const char* simt_gelu(Storage storage, const void* x, int64_t size, Approximate approximate, void* out) {
  return caught([&] { gelu(storage, x, size, approximate, out, nullptr); });
}

PF_EXPORT const char* simt_gelu_backward(Storage storage, void* gradient, int64_t cotangents, const void* x,
                                         int64_t size, Approximate approximate) {
  return caught([&] { gelu_backward(storage, gradient, cotangents, x, size, approximate, nullptr); });
}
}
