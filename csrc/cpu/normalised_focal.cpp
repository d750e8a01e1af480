// normalised_focal_loss_out on CPU tensors.
#include "normalised_focal.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <cmath>
#include <vector>

#include "../common/large.h"
#include "../common/library.h"
#include "../common/operand.h"
#include "../operators/normalised_focal.h"

namespace prograd::cpu {
namespace {

constexpr int64_t grain_size = 16384;  // pixels for which a second thread pays

void normalised_focal_loss_out(const at::Tensor& logits, const at::Tensor& labels_, double alpha, double gamma,
                               double max_mult, double eps, at::Tensor& losses, at::Tensor& cotangents) {
  check_normalised_focal_loss(at::kCPU, logits, labels_, gamma, eps, losses, cotangents);
  const at::ScalarType dtype = logits.scalar_type();
  const at::Tensor z = contiguous(logits, dtype), labels = labels_.contiguous();
  const Written written(cotangents, accumulation_dtype(dtype)), written_losses(losses, accumulation_dtype(dtype));
  prefer_huge_pages(written.data(), written.tensor().nbytes());
  const int64_t rows = z.size(0), pixels = z.size(1), size = z.itemsize();
  const int64_t cotangent_size = int64_t(written.tensor().itemsize());
  const auto* values = static_cast<const char*>(data_of(z));
  const int64_t* label = labels.const_data_ptr<int64_t>();
  const auto& kernels = kernels_for<FocalKernels>(storage_of(dtype));
  std::vector<double> results(rows);
  at::parallel_for(
      0, rows, std::max<int64_t>(1, grain_size / std::max<int64_t>(1, pixels)), [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          results[i] =
              kernels.loss({values + i * pixels * size, label + i * pixels,
                            written.data() + i * pixels * cotangent_size, pixels, alpha, gamma, max_mult, eps});
        }
      });
  const WrittenNumbers of_pictures(written_losses.tensor());
  for (int64_t i = 0; i < rows; ++i) {
    if (std::isnan(results[i])) check_marks(label + i * pixels, pixels);
    of_pictures.set(i, results[i]);
  }
  written.write_back();
  written_losses.write_back();
}

const Registration registration(c10::DispatchKey::CPU, [](torch::Library& library) {
  library.impl("normalised_focal_loss_out", TORCH_FN(normalised_focal_loss_out));
});

}  // namespace
}  // namespace prograd::cpu
