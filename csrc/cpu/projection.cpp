// gram_out and project_out on CPU tensors.
#include "projection.h"

#include "../common/large.h"
#include "../common/library.h"
#include "tensor_lists.h"

namespace prograd::cpu {
namespace {

void gram_out(at::TensorList task, at::TensorList general, int64_t scope, at::Tensor& entries) {
  check_gradients(at::kCPU, task, general, scope, entries);
  const Units units(task, Scope(scope));
  GradientList gradients;
  for (size_t i = 0; i < task.size(); ++i) {
    gradients.emplace_back(task[i], general[i], common_dtype(task[i], general[i]));
  }
  const Written written(entries, accumulation_dtype(entries.scalar_type()));
  write_entries(units, gradients, written.tensor(), false, [](const Unit&) {});
  written.write_back();
}

}  // namespace

void project(const ProjectArguments& all) {
  check_project(at::kCPU, all);
  const Units units(all.task, Scope(all.scope));
  c10::SmallVector<Written, 4> written;
  GradientList gradients;
  int64_t bytes = 0;
  for (size_t i = 0; i < all.task.size(); ++i) {
    const at::ScalarType dtype = common_dtype(all.task[i], all.general[i]);
    gradients.emplace_back(all.task[i], all.general[i], dtype);
    written.emplace_back(all.projected[i], dtype);
    const int64_t size = written[i].tensor().nbytes();
    prefer_huge_pages(written[i].data(), size);
    bytes += size;
  }
  project_units(units, gradients, all, false, [&](const Unit& unit, int64_t begin, int64_t end, Coefficients c) {
    const Gradients& pair = gradients[unit.tensor];
    pair.kernels.project(written[unit.tensor].data() + begin * pair.task.itemsize(), pair.task_at(begin),
                         pair.general_at(begin), end - begin, c.alpha, c.beta, bytes >= stream_bytes);
  });
  for (const Written& tensor : written) tensor.write_back();
}

namespace {

const Registration registration(c10::DispatchKey::CPU, [](torch::Library& library) {
  library.impl("gram_out", TORCH_FN(gram_out));
  library.impl("project_out", TORCH_FN(Unpacked<ProjectArguments>::call<project>));
});

}  // namespace
}  // namespace prograd::cpu
