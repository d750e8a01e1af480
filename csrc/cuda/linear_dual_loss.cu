#include "linear_dual_loss.cuh"
#include "storage.cuh"

namespace prograd::cuda {

size_t linear_dual_loss_workspace(Storage storage, int64_t rows, int64_t classes) {
  return storage == Storage::float64 ? linear_workspace<double>(rows, classes) : linear_workspace<float>(rows, classes);
}

void linear_dual_loss(Storage storage, const void* features, const void* student, const void* teacher, int64_t rows,
                      int64_t classes, int64_t width, double scale, const LossOptions& options, void* workspace,
                      void* stream) {
  with_storage(storage, [&](auto type) {
    using T = typename decltype(type)::type;
    const auto run = teacher ? launch_linear_dual_loss<T, true> : launch_linear_dual_loss<T, false>;
    run(static_cast<const T*>(features), static_cast<const T*>(student), static_cast<const T*>(teacher), rows, classes,
        width, scale, options, workspace, stream);
  });
}

}  // namespace prograd::cuda
