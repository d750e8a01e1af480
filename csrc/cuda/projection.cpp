// gram_out and project_out on CUDA tensors.
#include "projection.h"

#include "../common/library.h"
#include "../operators/projection.h"
#include "operand_lists.h"

namespace prograd::cuda {
namespace {

void gram_out(at::TensorList task, at::TensorList general, int64_t scope, at::Tensor& entries) {
  check_gradients(at::kCUDA, task, general, scope, entries);
  const Launch launch(entries);
  const at::ScalarType dtype = common_dtype_of({task, general});
  const Written written(entries, accumulation_dtype(dtype));
  OperandLists lists(launch, task, Scope(scope), dtype);
  lists.read_gradients(task, general);
  gram(lists.storage(), lists.tensors(), lists.count(), lists.scope(), written.data(),
       lists.workspace().mutable_data_ptr(), launch.stream());
  written.write_back();
}

void project_out(const ProjectArguments& all) {
  check_project(at::kCUDA, all);
  if (all.task.empty()) {
    if (!all.coefficients) all.entries.zero_();
    return;
  }
  const Launch launch(all.task[0]);
  const at::ScalarType dtype = common_dtype_of({all.task, all.general});
  const Written entries(all.entries, accumulation_dtype(dtype));
  const at::Tensor coefficients = launch.operand(all.coefficients, accumulation_dtype(dtype), "coefficients");
  OperandLists lists(launch, all.task, Scope(all.scope), dtype);
  lists.read_gradients(all.task, all.general);
  lists.write(all.projected, dtype, "projected", [](Tensor& tensor, void* data) { tensor.param = data; });
  const Projection projection{
      lists.scope(), pointer_or_null(coefficients), entries.data(), all.lambda, all.noise_floor, nullptr, false};
  project(lists.storage(), lists.tensors(), lists.count(), projection, lists.workspace().mutable_data_ptr(),
          launch.stream());
  lists.write_back();
  entries.write_back();
}

const Registration registration(c10::DispatchKey::CUDA, [](torch::Library& library) {
  library.impl("gram_out", TORCH_FN(gram_out));
  library.impl("project_out", TORCH_FN(Unpacked<ProjectArguments>::call<project_out>));
});

}  // namespace
}  // namespace prograd::cuda
