// difference_loss_out on CPU tensors.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <vector>

#include "../common/library.h"
#include "../common/operand.h"
#include "../operators/differences.h"
#include "differences.h"
#include "large.h"

namespace prograd::cpu {
namespace {

constexpr int64_t chunk_size = 16384;  // elements of one partial sum, whatever thread makes it
constexpr int64_t grain_chunks = 4;    // for which a second thread pays

void difference_loss_out(const at::Tensor& prediction, const at::Tensor& target, bool soft_wing, double omega1,
                         double omega2, double epsilon, double factor, at::Tensor& loss, at::Tensor& cotangents) {
  check_difference_loss(at::kCPU, prediction, target, soft_wing, omega1, omega2, epsilon, loss, cotangents);
  const at::ScalarType dtype = common_dtype(prediction, target);
  const at::Tensor x = contiguous(prediction, dtype), t = contiguous(target, dtype);
  const Written written(cotangents, accumulation_dtype(dtype));
  prefer_huge_pages(written.data(), written.tensor().nbytes());
  const int64_t n = x.numel(), size = x.itemsize(), cotangent_size = int64_t(written.tensor().itemsize());
  const int64_t chunks = (n + chunk_size - 1) / chunk_size;
  const auto& kernels = kernels_for<DifferenceKernels>(storage_of(dtype));
  std::vector<double> sums(chunks);
  at::parallel_for(0, chunks, grain_chunks, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t at = i * chunk_size;
      const Difference difference{static_cast<const char*>(data_of(x)) + at * size,
                                  static_cast<const char*>(data_of(t)) + at * size,
                                  written.data() + at * cotangent_size,
                                  soft_wing,
                                  omega1,
                                  omega2,
                                  epsilon,
                                  factor};
      sums[i] = kernels.loss(difference, std::min(chunk_size, n - at));
    }
  });
  written.write_back();
  double total = 0;
  for (const double sum : sums) total += sum;
  loss.fill_(factor * total);
}

const Registration registration(c10::DispatchKey::CPU, [](torch::Library& library) {
  library.impl("difference_loss_out", TORCH_FN(difference_loss_out));
});

}  // namespace
}  // namespace prograd::cpu
