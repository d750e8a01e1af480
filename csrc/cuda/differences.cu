#include "differences.cuh"
#include "storage.cuh"

namespace prograd::cuda {

size_t difference_loss_workspace(Storage storage, int64_t size) {
  return difference_blocks(size) * (storage == Storage::float64 ? sizeof(double) : sizeof(float)) + sizeof(unsigned);
}

void difference_loss(Storage storage, const void* prediction, const void* target, int64_t size,
                     const DifferenceOptions& options, void* workspace, void* stream) {
  with_storage(storage, [&](auto type) {
    using T = typename decltype(type)::type;
    using A = Acc<T>;
    const auto run = [&](auto function) {
      launch_difference_loss(static_cast<const T*>(prediction), static_cast<const T*>(target), size, function,
                             options.factor, options.loss, options.cotangents, workspace, stream);
    };
    if (options.soft_wing) {
      run(SoftWing<A>::of(options.omega1, options.omega2, options.epsilon));
    } else {
      run(SquaredError<A>{});
    }
  });
}

}  // namespace prograd::cuda
