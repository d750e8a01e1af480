// gram_out and project_ on CPU tensors.
#include "projection.h"

#include "../common/library.h"
#include "tensor_lists.h"

namespace prograd::cpu {
namespace {

void gram_out(at::TensorList task, at::TensorList general, int64_t scope, at::Tensor& entries) {
  check_gradients(at::kCPU, task, general, scope, &entries, nullptr);
  const Units units(task, Scope(scope));
  GradientList gradients;
  for (size_t i = 0; i < task.size(); ++i) {
    gradients.emplace_back(task[i], general[i], common_dtype(task[i], general[i]));
  }
  const Written written(entries, accumulation_dtype(entries.scalar_type()));
  write_entries(units, gradients, written.tensor(), false, [](const Unit&) {});
  written.write_back();
}

void project_(at::TensorList task, at::TensorList general, const at::Tensor& given_coefficients, int64_t scope) {
  check_gradients(at::kCPU, task, general, scope, nullptr, &given_coefficients, true);
  const Units units(task, Scope(scope));
  const at::Tensor coefficients = contiguous(given_coefficients, accumulation_dtype(given_coefficients.scalar_type()));
  c10::SmallVector<Written, 4> written;
  GradientList gradients;
  for (size_t i = 0; i < task.size(); ++i) {
    const at::ScalarType dtype = common_dtype(task[i], general[i]);
    written.emplace_back(task[i], dtype);
    gradients.emplace_back(written[i].tensor(), general[i], dtype);
  }
  units.each_part(false, [&](const Unit& unit, int64_t begin, int64_t end) {
    const Gradients& pair = gradients[unit.tensor];
    pair.kernels.project(written[unit.tensor].data() + begin * pair.task.itemsize(), pair.general_at(begin),
                         end - begin, get(coefficients, 2 * unit.entry), get(coefficients, 2 * unit.entry + 1));
  });
  for (const Written& tensor : written) tensor.write_back();
}

const Registration registration(c10::DispatchKey::CPU, [](torch::Library& library) {
  library.impl("gram_out", TORCH_FN(gram_out));
  library.impl("project_", TORCH_FN(project_));
});

}  // namespace
}  // namespace prograd::cpu
