#include "samples.cuh"
#include "storage.cuh"

namespace prograd::cuda {

size_t samples_workspace(Storage storage, int64_t samples, int64_t rows) {
  return storage == Storage::float64 ? samples_workspace<double>(samples, rows)
                                     : samples_workspace<float>(samples, rows);
}

void sampled_cross_entropy(Storage storage, const void* logits, const int64_t* labels, int64_t samples, int64_t rows,
                           int64_t classes, Reduction reduction, void* losses, void* cotangents, void* workspace,
                           void* stream) {
  with_storage(storage, [&](auto type) {
    using T = typename decltype(type)::type;
    launch_sampled_cross_entropy(
        sample_arguments(static_cast<const T*>(logits), samples, rows, classes, workspace), labels, reduction, losses,
        cotangents, stream);
  });
}

void sampled_log_probs(Storage storage, const void* logits, int64_t samples, int64_t rows, int64_t classes,
                       void* log_probs, void* workspace, void* stream) {
  with_storage(storage, [&](auto type) {
    using T = typename decltype(type)::type;
    launch_sampled_log_probs(sample_arguments(static_cast<const T*>(logits), samples, rows, classes, workspace),
                             log_probs, stream);
  });
}

}  // namespace prograd::cuda
