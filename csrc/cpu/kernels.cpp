// The table of kernels for one instruction set. Compiled several times, with other compiler flags and another PF_ISA.
#include <type_traits>

#include "attention.h"
#include "differences.h"
#include "dual_loss.h"
#include "gelu.h"
#include "kernels.h"
#include "layer_norm.h"
#include "product.h"
#include "samples.h"
#include "storage.h"
#include "update.h"

#define PF_STRING_(x) #x
#define PF_STRING(x) PF_STRING_(x)

namespace prograd {
namespace {

// Calls body with a null pointer to the storage type.
template <typename Body>
auto with_storage(Storage storage, Body body) {
  switch (storage) {
    case Storage::f64: return body(static_cast<double*>(nullptr));
    case Storage::f32: return body(static_cast<float*>(nullptr));
    case Storage::bf16: return body(static_cast<BFloat16*>(nullptr));
    default: return body(static_cast<Half*>(nullptr));
  }
}

// The same with the parameter's type and that of its moments.
template <typename Body>
void with_storages(Storage storage, Storage moments, Body body) {
  with_storage(storage, [&](auto* s) {
    if (storage == moments) {
      body(s, s);
    } else {
      body(s, static_cast<Accumulation<std::remove_pointer_t<decltype(s)>>*>(nullptr));
    }
  });
}

void any_gram(Storage storage, const void* a, const void* b, std::int64_t n, double task_scale, double* sums) {
  with_storage(storage, [&](auto* s) {
    gram(static_cast<decltype(s)>(const_cast<void*>(a)), static_cast<decltype(s)>(const_cast<void*>(b)), n, task_scale,
         sums);
  });
}

void any_project(Storage storage, void* a, const void* b, std::int64_t n, double alpha, double beta) {
  with_storage(storage, [&](auto* s) {
    project(static_cast<decltype(s)>(a), static_cast<decltype(s)>(const_cast<void*>(b)), n, alpha, beta);
  });
}

void any_adamw(Storage storage, Storage moments, const Kernels::AdamWTensors& tensors, std::int64_t n,
               const AdamW<double>& step, double alpha, double beta) {
  with_storages(storage, moments, [&](auto* s, auto* m) {
    adamw<std::remove_pointer_t<decltype(s)>, std::remove_pointer_t<decltype(m)>>(tensors, n, step, alpha, beta);
  });
}

void any_sgd(Storage storage, Storage moments, const Kernels::SGDTensors& tensors, std::int64_t n,
             const SGD<double>& step, double alpha, double beta) {
  with_storages(storage, moments, [&](auto* s, auto* m) {
    sgd<std::remove_pointer_t<decltype(s)>, std::remove_pointer_t<decltype(m)>>(tensors, n, step, alpha, beta);
  });
}

void any_dual_loss_rows(Storage storage, const Kernels::DualLossRow* rows, std::int64_t count, void* scratch,
                        Kernels::DualLosses* results) {
  with_storage(storage, [&](auto* s) {
    dual_loss_rows<std::remove_pointer_t<decltype(s)>>(rows, count, scratch, results);
  });
}

double any_sampled_cross_entropy_row(Storage storage, const Kernels::SampledRow& row, std::int64_t label,
                                     double weight) {
  return with_storage(storage, [&](auto* s) {
    return sampled_cross_entropy_row<std::remove_pointer_t<decltype(s)>>(row, label, weight);
  });
}

void any_sampled_log_probs_row(Storage storage, const Kernels::SampledRow& row, void* log_probs) {
  with_storage(storage, [&](auto* s) { sampled_log_probs_row<std::remove_pointer_t<decltype(s)>>(row, log_probs); });
}

void any_pack(Storage storage, std::int64_t depth, std::int64_t columns, const void* b, std::int64_t b_row,
              std::int64_t b_column, void* packed) {
  if (storage == Storage::f64) {
    pack(depth, columns, static_cast<const double*>(b), b_row, b_column, static_cast<double*>(packed));
  } else {
    pack(depth, columns, static_cast<const float*>(b), b_row, b_column, static_cast<float*>(packed));
  }
}

void any_product(Storage storage, const Kernels::Product& all) {
  storage == Storage::f64 ? packed_product<double>(all) : packed_product<float>(all);
}

double any_difference_loss(Storage storage, const Kernels::Difference& difference, std::int64_t n) {
  return with_storage(storage,
                      [&](auto* s) { return difference_loss<std::remove_pointer_t<decltype(s)>>(difference, n); });
}

void any_gelu(Storage storage, const void* x, void* out, std::int64_t n, Approximate approximate) {
  with_storage(storage, [&](auto* s) {
    using S = std::remove_pointer_t<decltype(s)>;
    gelu_forward(static_cast<const S*>(x), static_cast<S*>(out), n, approximate);
  });
}

void any_gelu_backward(Storage storage, const void* x, void* gradients, std::int64_t n, std::int64_t count,
                       std::int64_t stride, Approximate approximate) {
  with_storage(storage, [&](auto* s) {
    using S = std::remove_pointer_t<decltype(s)>;
    gelu_backward(static_cast<const S*>(x), static_cast<S*>(gradients), n, count, stride, approximate);
  });
}

void any_add_layer_norm(Storage storage, const Kernels::AddLayerNorm& all, std::int64_t begin, std::int64_t end) {
  with_storage(storage, [&](auto* s) { add_layer_norm<std::remove_pointer_t<decltype(s)>>(all, begin, end); });
}

void any_layer_norm_backward(Storage storage, const Kernels::LayerNormBackward& all, std::int64_t begin,
                             std::int64_t end) {
  with_storage(storage, [&](auto* s) { layer_norm_backward<std::remove_pointer_t<decltype(s)>>(all, begin, end); });
}

std::int64_t any_attention_scratch(Storage storage, const Kernels::Attention& all, std::int64_t count) {
  return with_storage(storage, [&](auto* s) {
    return AttentionHead<std::remove_pointer_t<decltype(s)>>(all, count, nullptr).scratch_size();
  });
}

void any_attention(Storage storage, const Kernels::Attention& all, std::int64_t begin, std::int64_t end, void* out,
                   std::int64_t out_row, void* scratch) {
  with_storage(storage, [&](auto* s) {
    using S = std::remove_pointer_t<decltype(s)>;
    AttentionHead<S>(all, 0, scratch).forward(begin, end, static_cast<S*>(out), out_row);
  });
}

void any_attention_backward(Storage storage, const Kernels::Attention& all, const Kernels::AttentionGradients& to,
                            std::int64_t begin, std::int64_t end, void* scratch) {
  with_storage(storage, [&](auto* s) {
    AttentionHead<std::remove_pointer_t<decltype(s)>>(all, to.count, scratch).backward(begin, end, to);
  });
}

void any_sum(Storage storage, const void* arrays, std::int64_t count, std::int64_t stride, std::int64_t n, void* out) {
  with_storage(storage, [&](auto* s) {
    using S = std::remove_pointer_t<decltype(s)>;
    const auto* from = static_cast<const Accumulation<S>*>(arrays);
#pragma omp simd
    for (std::int64_t i = 0; i < n; ++i) {
      Accumulation<S> sum = 0;
      for (std::int64_t k = 0; k < count; ++k) sum += from[k * stride + i];
      store(static_cast<S*>(out)[i], sum);
    }
  });
}

}  // namespace

#define PF_NAME_(isa) kernels_##isa
#define PF_NAME(isa) PF_NAME_(isa)
extern const Kernels PF_NAME(PF_ISA);
const Kernels PF_NAME(PF_ISA) = {
    PF_STRING(PF_ISA),
    any_gram,
    any_project,
    any_adamw,
    any_sgd,
    any_dual_loss_rows,
    any_sampled_cross_entropy_row,
    any_sampled_log_probs_row,
    any_pack,
    any_product,
    any_difference_loss,
    any_gelu,
    any_gelu_backward,
    any_add_layer_norm,
    any_layer_norm_backward,
    any_attention_scratch,
    any_attention,
    any_attention_backward,
    any_sum,
};

}  // namespace prograd
