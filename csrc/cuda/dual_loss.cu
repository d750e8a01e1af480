#include "dual_loss.cuh"
#include "storage.cuh"

namespace prograd::cuda {

size_t dual_loss_workspace(Storage storage, int64_t rows) {
  return storage == Storage::float64 ? losses_workspace<double>(rows) : losses_workspace<float>(rows);
}

void dual_loss(Storage storage, const void* student, const void* teacher, int64_t rows, int64_t classes,
               const LossOptions& options, void* workspace, void* stream) {
  with_storage(storage, [&](auto type) {
    using T = typename decltype(type)::type;
    launch_dual_loss(static_cast<const T*>(student), static_cast<const T*>(teacher), rows, classes, options, workspace,
                     stream);
  });
}

}  // namespace prograd::cuda
