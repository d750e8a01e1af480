// The table of kernels for one instruction set. Compiled several times, with other compiler flags and another PF_ISA.
#include <type_traits>

#include "dual_loss.h"
#include "kernels.h"
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

Kernels::DualLosses any_dual_loss_row(Storage storage, const Kernels::DualLossRow& row) {
  return with_storage(storage, [&](auto* s) { return dual_loss_row<std::remove_pointer_t<decltype(s)>>(row); });
}

}  // namespace

#define PF_NAME_(isa) kernels_##isa
#define PF_NAME(isa) PF_NAME_(isa)
extern const Kernels PF_NAME(PF_ISA);
const Kernels PF_NAME(PF_ISA) = {PF_STRING(PF_ISA), any_gram, any_project, any_adamw, any_sgd, any_dual_loss_row};

}  // namespace prograd
