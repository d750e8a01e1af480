// sampled_cross_entropy_out and sampled_log_probs_out on CPU tensors.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/core/LegacyTypeDispatch.h>

#include "../common/large.h"
#include "../common/library.h"
#include "../common/operand.h"
#include "../operators/samples.h"
#include "samples.h"

namespace prograd::cpu {
namespace {

constexpr int64_t grain_size = 16384;  // logits for which a second thread pays

// body(i, row) for every row of the batch, whatever thread it runs on.
template <typename Body>
void each_row(const at::Tensor& logits, char* cotangents, const Body& body) {
  const int64_t samples = logits.size(0), rows = logits.size(1), classes = logits.size(2), size = logits.itemsize();
  const at::ScalarType accumulation = accumulation_dtype(logits.scalar_type());
  const int64_t cotangent_size = int64_t(c10::elementSize(accumulation));
  const bool stream = logits.numel() * cotangent_size >= stream_bytes;
  const int64_t of_row = std::max<int64_t>(1, samples * classes);
  at::parallel_for(0, rows, std::max<int64_t>(1, grain_size / of_row), [&](int64_t begin, int64_t end) {
    const at::AutoDispatchBelowADInplaceOrView below_autograd;  // threads of the pool do not inherit it
    const at::Tensor scratch = at::empty({3 * samples}, logits.options().dtype(accumulation));
    for (int64_t i = begin; i < end; ++i) {
      body(i, SampledRow{static_cast<const char*>(data_of(logits)) + i * classes * size, samples, classes,
                         rows * classes, cotangents ? cotangents + i * classes * cotangent_size : nullptr,
                         scratch.mutable_data_ptr(), stream});
    }
  });
}

void sampled_cross_entropy_out(const at::Tensor& logits, const at::Tensor& labels_, int64_t reduction_,
                               at::Tensor& losses, at::Tensor& cotangents) {
  check_sampled_cross_entropy(at::kCPU, logits, labels_, reduction_, losses, cotangents);
  const auto reduction = Reduction(reduction_);
  const at::ScalarType dtype = logits.scalar_type();
  const at::Tensor z = contiguous(logits, dtype), labels = labels_.contiguous();
  const int64_t rows = z.size(1), classes = z.size(2);
  const int64_t* label = labels.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < rows; ++i) {
    TORCH_CHECK_VALUE(label[i] >= 0 && label[i] < classes, "labels[", i, "]: ", label[i], " is out of bounds for ",
                      classes, " classes.");
  }
  const Written written(cotangents, accumulation_dtype(dtype));
  const Written written_losses(losses, accumulation_dtype(losses.scalar_type()));
  prefer_huge_pages(written.data(), written.tensor().nbytes());
  const double weight = reduction == Reduction::mean ? 1.0 / double(rows) : 1.0;
  const auto& kernels = kernels_for<SampleKernels>(storage_of(dtype));
  std::vector<double> results(rows);
  each_row(z, written.data(),
           [&](int64_t i, const SampledRow& row) { results[i] = kernels.cross_entropy(row, label[i], weight); });
  written.write_back();
  const WrittenNumbers means(written_losses.tensor());
  double total = 0;
  for (int64_t i = 0; i < rows; ++i) {
    total += results[i];
    if (reduction == Reduction::none) means.set(i, results[i]);
  }
  if (reduction != Reduction::none) means.set(0, reduction == Reduction::mean ? total / double(rows) : total);
  written_losses.write_back();
}

void sampled_log_probs_out(const at::Tensor& logits, at::Tensor& log_probs) {
  check_sampled_log_probs(at::kCPU, logits, log_probs);
  const at::Tensor z = contiguous(logits, logits.scalar_type());
  const Written written(log_probs, accumulation_dtype(z.scalar_type()));
  const int64_t bytes = z.size(2) * int64_t(written.tensor().itemsize());
  const auto& kernels = kernels_for<SampleKernels>(storage_of(z.scalar_type()));
  each_row(z, nullptr, [&](int64_t i, const SampledRow& row) { kernels.log_probs(row, written.data() + i * bytes); });
  written.write_back();
}

const Registration registration(c10::DispatchKey::CPU, [](torch::Library& library) {
  library.impl("sampled_cross_entropy_out", TORCH_FN(sampled_cross_entropy_out));
  library.impl("sampled_log_probs_out", TORCH_FN(sampled_log_probs_out));
});

}  // namespace
}  // namespace prograd::cpu
