// project_adamw_ and project_sgd_ on CUDA tensors.
#include "updates.h"

#include "../common/library.h"
#include "../operators/updates.h"
#include "operand_lists.h"

namespace prograd::cuda {
namespace {

// How the two optimizers project, and their learning rate, kept alive for a launch.
class Step {
 public:
  template <typename Arguments>
  Step(const Launch& launch, at::ScalarType dtype, const Arguments& all)
      : entries_(all.entries, accumulation_dtype(dtype)),
        coefficients_(launch.operand(all.coefficients, accumulation_dtype(dtype), "coefficients")),
        found_inf_(launch.operand(all.found_inf, at::kFloat, "found_inf")) {
    const bool on_host = all.lr_tensor && all.lr_tensor->is_cpu();  // nothing to wait for
    if (!on_host) lr_tensor_ = launch.operand(all.lr_tensor, at::kFloat, "lr_tensor");
    rate = {on_host ? all.lr_tensor->template item<double>() : all.lr, pointer_or_null<float>(lr_tensor_)};
    projection = {Scope(all.scope), pointer_or_null(coefficients_),     entries_.data(), all.lambda,
                  all.noise_floor,  pointer_or_null<float>(found_inf_), all.maximize};
  }

  Projection projection;
  LearningRate rate;
  void write_back() const { entries_.write_back(); }

 private:
  Written entries_;
  at::Tensor coefficients_, found_inf_, lr_tensor_;
};

// 16-bit parameters may have moments in float32; other mixtures are read in the wider dtype.
struct Dtypes {
  at::ScalarType params, states;

  Dtypes(std::initializer_list<at::TensorList> params_and_gradients, std::initializer_list<at::TensorList> moments)
      : params(common_dtype_of(params_and_gradients)), states(params) {
    bool any = false;
    for (const at::TensorList list : moments) any = any || !list.empty();
    if (any) states = common_dtype_of(moments);
    const bool narrow = params == at::kBFloat16 || params == at::kHalf;
    if (states == params || (narrow && states == at::kFloat)) return;
    params = states = accumulation_dtype(at::promote_types(params, states));
  }
};

void project_adamw(const AdamWArguments& all) {
  check_update(at::kCUDA, all);
  if (all.params.empty()) return;
  const Launch launch(all.params[0]);
  const Dtypes dtypes({all.params, all.task, all.general}, {all.exp_avgs, all.exp_avg_sqs});
  const Step step(launch, dtypes.params, all);
  OperandLists lists(launch, all.task, Scope(all.scope), dtypes.params);
  lists.read_gradients(all.task, all.general);
  lists.write(all.params, dtypes.params, "params", [](Tensor& tensor, void* data) { tensor.param = data; });
  lists.write_state(all.exp_avgs, dtypes.states, "exp_avgs", 0);
  lists.write_state(all.exp_avg_sqs, dtypes.states, "exp_avg_sqs", 1);
  if (all.amsgrad) lists.write_state(all.max_exp_avg_sqs, dtypes.states, "max_exp_avg_sqs", 2);
  lists.write(all.steps, at::kFloat, "steps",
              [](Tensor& tensor, void* data) { tensor.step = static_cast<float*>(data); });
  const AdamWSettings settings{step.rate, all.beta1, all.beta2, all.eps, all.weight_decay};
  adamw(lists.storage(), storage_of(dtypes.states), lists.tensors(), lists.count(), step.projection, settings,
        lists.workspace().mutable_data_ptr(), launch.stream());
  lists.write_back();
  step.write_back();
}

void project_sgd(const SGDArguments& all) {
  check_update(at::kCUDA, all);
  if (all.params.empty()) return;
  const Launch launch(all.params[0]);
  const Dtypes dtypes({all.params, all.task, all.general}, {all.momentum_buffers});
  const Step step(launch, dtypes.params, all);
  OperandLists lists(launch, all.task, Scope(all.scope), dtypes.params);
  lists.read_gradients(all.task, all.general);
  lists.write(all.params, dtypes.params, "params", [](Tensor& tensor, void* data) { tensor.param = data; });
  lists.write_state(all.momentum_buffers, dtypes.states, "momentum_buffers", 0);
  const SGDSettings settings{step.rate, all.momentum, all.dampening, all.weight_decay, all.nesterov, all.first};
  sgd(lists.storage(), storage_of(dtypes.states), lists.tensors(), lists.count(), step.projection, settings,
      lists.workspace().mutable_data_ptr(), launch.stream());
  lists.write_back();
  step.write_back();
}

const Registration registration(c10::DispatchKey::CUDA, [](torch::Library& library) {
  library.impl("project_adamw_", TORCH_FN(Unpacked<AdamWArguments>::call<project_adamw>));
  library.impl("project_sgd_", TORCH_FN(Unpacked<SGDArguments>::call<project_sgd>));
});

}  // namespace
}  // namespace prograd::cuda
