// gram_out and project_ on CUDA tensors.
#include "projection.h"

#include "../common/library.h"
#include "../operators/projection.h"
#include "operand_lists.h"

namespace prograd::cuda {
namespace {

void gram_out(at::TensorList task, at::TensorList general, int64_t scope, at::Tensor& entries) {
  check_gradients(at::kCUDA, task, general, scope, &entries, nullptr);
  const Launch launch(entries);
  const at::ScalarType dtype = common_dtype_of({task, general});
  const Written written(entries, accumulation_dtype(dtype));
  OperandLists lists(launch, task, Scope(scope), dtype);
  lists.read_gradients(task, general);
  gram(lists.storage(), lists.tensors(), lists.count(), lists.scope(), written.data(),
       lists.workspace().mutable_data_ptr(), launch.stream());
  written.write_back();
}

void project_(at::TensorList task, at::TensorList general, const at::Tensor& coefficients, int64_t scope) {
  check_gradients(at::kCUDA, task, general, scope, nullptr, &coefficients, true);
  if (task.empty()) return;
  const Launch launch(task[0]);
  const at::ScalarType dtype = common_dtype_of({task, general});
  const at::Tensor factors = launch.operand(coefficients, accumulation_dtype(dtype), "coefficients");
  OperandLists lists(launch, task, Scope(scope), dtype);
  lists.write(task, dtype, "task", [](Tensor& tensor, void* data) { tensor.task = data; });
  lists.read_general(general);
  project(lists.storage(), lists.tensors(), lists.count(), lists.scope(), factors.const_data_ptr(),
          lists.workspace().mutable_data_ptr(), launch.stream());
  lists.write_back();
}

const Registration registration(c10::DispatchKey::CUDA, [](torch::Library& library) {
  library.impl("gram_out", TORCH_FN(gram_out));
  library.impl("project_", TORCH_FN(project_));
});

}  // namespace
}  // namespace prograd::cuda
