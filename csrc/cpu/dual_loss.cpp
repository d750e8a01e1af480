// dual_loss and dual_loss_out on CPU tensors.
#include "dual_loss.h"

#include "../common/large.h"
#include "../common/library.h"
#include "../operators/dual_loss.h"
#include "dual_loss_rows.h"

namespace prograd::cpu {
namespace {

at::Tensor unit_stride(const at::Tensor& matrix, at::ScalarType dtype) {
  const at::Tensor converted = matrix.scalar_type() == dtype ? matrix : matrix.to(dtype);
  return converted.size(1) <= 1 || converted.stride(1) == 1 ? converted : converted.contiguous();
}

void dual_loss(const DualLossArguments& all, at::Tensor& losses, at::Tensor& cotangents, at::Tensor& correct) {
  const at::ScalarType dtype = common_dtype(all.student, all.teacher);
  const Rows rows(all.row_options(), all.student.size(1), accumulation_dtype(dtype));
  const Written written(cotangents, accumulation_dtype(dtype));
  const int64_t bytes = all.student.numel() * int64_t(written.tensor().itemsize());
  prefer_huge_pages(written.data(), 2 * bytes);
  std::vector<DualLosses> results(rows.count);
  rows.compute(0, unit_stride(all.student, dtype), unit_stride(all.teacher, dtype), written.data(),
               written.data() + bytes, 2 * bytes >= stream_bytes, results.data());
  written.write_back();
  rows.write(results, losses, correct);
}

const Registration registration(c10::DispatchKey::CPU, [](torch::Library& library) {
  using Operator = LossOperator<DualLossArguments>;
  library.impl("dual_loss", TORCH_FN(Operator::returned<dual_loss>));
  library.impl("dual_loss_out", TORCH_FN((Operator::out<dual_loss, at::kCPU>)));
});

}  // namespace
}  // namespace prograd::cpu
