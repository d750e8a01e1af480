// gram_out, project_, project_adamw_ and project_sgd_ on CUDA tensors.
#include <vector>

#include "../checks.h"
#include "../operators.h"
#include "launch.h"

namespace prograd::cuda {
namespace {

// The dtype that all tensors of some lists are read in: their own if they share it, else float32 or float64.
at::ScalarType common_dtype_of(std::initializer_list<at::TensorList> lists) {
  const at::Tensor* first = nullptr;
  at::ScalarType dtype = at::kFloat;
  for (const at::TensorList list : lists) {
    for (const at::Tensor& tensor : list) {
      dtype = !first ? tensor.scalar_type() : dtype == tensor.scalar_type() ? dtype : common_dtype(*first, tensor);
      if (!first) first = &tensor;
    }
  }
  return dtype;
}

// Lists of tensors as the kernels take them: contiguous, of one dtype, on one device.
class Lists {
 public:
  Lists(const Launch& launch, at::TensorList task, int64_t scope, at::ScalarType dtype)
      : launch_(launch), dtype_(dtype), scope_(static_cast<Scope>(scope)), tensors_(task.size()) {
    for (size_t i = 0; i < task.size(); ++i) {
      const bool rows = scope_ == Scope::row && task[i].dim() > 0;
      tensors_[i].units = rows ? task[i].size(0) : 1;
      tensors_[i].unit_size = tensors_[i].units ? task[i].numel() / tensors_[i].units : 0;
    }
  }

  // fill(tensor, pointer) for every tensor of the list.
  template <typename Fill>
  void read(at::TensorList list, const char* name, const Fill& fill) {
    for (size_t i = 0; i < list.size(); ++i) {
      operands_.push_back(launch_.operand(list[i], dtype_, name));
      fill(tensors_[i], operands_.back().const_data_ptr());
    }
  }
  template <typename Fill>
  void write(at::TensorList list, at::ScalarType dtype, const char* name, const Fill& fill) {
    for (size_t i = 0; i < list.size(); ++i) {
      launch_.check_device(list[i], name);
      written_.emplace_back(list[i], dtype);
      fill(tensors_[i], written_.back().data());
    }
  }

  void read_gradients(at::TensorList task, at::TensorList general) {
    read(task, "task", [](Tensor& tensor, const void* data) { tensor.task = const_cast<void*>(data); });
    read_general(general);
  }
  void read_general(at::TensorList general) {
    read(general, "general", [](Tensor& tensor, const void* data) { tensor.general = data; });
  }
  void write_state(at::TensorList list, at::ScalarType dtype, const char* name, int k) {
    write(list, dtype, name, [k](Tensor& tensor, void* data) { tensor.state[k] = data; });
  }

  Storage storage() const { return storage_of(dtype_); }
  const Tensor* tensors() const { return tensors_.data(); }
  int count() const { return int(tensors_.size()); }
  Scope scope() const { return scope_; }
  at::Tensor workspace() const { return launch_.workspace(tensors_workspace(storage(), tensors(), count(), scope_)); }
  void write_back() const {
    for (const Written& tensor : written_) tensor.write_back();
  }

 private:
  const Launch& launch_;
  at::ScalarType dtype_;
  Scope scope_;
  std::vector<Tensor> tensors_;
  std::vector<at::Tensor> operands_;
  std::vector<Written> written_;
};

// How the two optimizers project, and their learning rate, kept alive for a launch.
class Step {
 public:
  Step(const Launch& launch, at::ScalarType dtype, int64_t scope, at::Tensor& entries,
       const std::optional<at::Tensor>& coefficients, const std::optional<at::Tensor>& lr_tensor, double lr,
       double lambda, bool maximize, const std::optional<at::Tensor>& grad_scale,
       const std::optional<at::Tensor>& found_inf)
      : entries_(entries, accumulation_dtype(dtype)),
        coefficients_(launch.operand(coefficients, accumulation_dtype(dtype), "coefficients")),
        grad_scale_(launch.operand(grad_scale, at::kFloat, "grad_scale")),
        found_inf_(launch.operand(found_inf, at::kFloat, "found_inf")) {
    if (lr_tensor && lr_tensor->is_cpu()) lr = lr_tensor->item<double>();  // on the host: nothing to wait for
    else lr_tensor_ = launch.operand(lr_tensor, at::kFloat, "lr_tensor");
    rate = {lr, pointer_or_null<float>(lr_tensor_)};
    projection = {static_cast<Scope>(scope),           pointer_or_null(coefficients_),      entries_.data(), lambda,
                  pointer_or_null<float>(grad_scale_), pointer_or_null<float>(found_inf_), maximize};
  }

  Projection projection;
  LearningRate rate;
  void write_back() const { entries_.write_back(); }

 private:
  Written entries_;
  at::Tensor coefficients_, grad_scale_, found_inf_, lr_tensor_;
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
    params = states = params == at::kDouble || states == at::kDouble ? at::kDouble : at::kFloat;
  }
};

}  // namespace

void gram_out(at::TensorList task, at::TensorList general, int64_t scope, at::Tensor& entries) {
  check_gradients(at::kCUDA, task, general, scope, &entries, nullptr);
  const Launch launch(entries);
  const at::ScalarType dtype = common_dtype_of({task, general});
  const Written written(entries, accumulation_dtype(dtype));
  Lists lists(launch, task, scope, dtype);
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
  Lists lists(launch, task, scope, dtype);
  lists.write(task, dtype, "task", [](Tensor& tensor, void* data) { tensor.task = data; });
  lists.read_general(general);
  project(lists.storage(), lists.tensors(), lists.count(), lists.scope(), factors.const_data_ptr(),
          lists.workspace().mutable_data_ptr(), launch.stream());
  lists.write_back();
}

void project_adamw_(at::TensorList params, at::TensorList task, at::TensorList general, at::TensorList exp_avgs,
                    at::TensorList exp_avg_sqs, at::TensorList max_exp_avg_sqs, at::TensorList steps,
                    at::Tensor& entries, const std::optional<at::Tensor>& coefficients,
                    const std::optional<at::Tensor>& lr_tensor, double lr, double beta1, double beta2, double eps,
                    double weight_decay, double lambda, int64_t scope, bool amsgrad, bool maximize,
                    const std::optional<at::Tensor>& grad_scale, const std::optional<at::Tensor>& found_inf) {
  const Arguments arguments = check_update(at::kCUDA, params, task, general, entries, coefficients, lr_tensor, lambda,
                                           scope, grad_scale, found_inf);
  check_adamw_states(arguments, params, exp_avgs, exp_avg_sqs, max_exp_avg_sqs, steps, amsgrad);
  if (params.empty()) return;
  const Launch launch(params[0]);
  const Dtypes dtypes({params, task, general}, {exp_avgs, exp_avg_sqs});
  const Step step(launch, dtypes.params, scope, entries, coefficients, lr_tensor, lr, lambda, maximize, grad_scale,
                  found_inf);
  Lists lists(launch, task, scope, dtypes.params);
  lists.read_gradients(task, general);
  lists.write(params, dtypes.params, "params", [](Tensor& tensor, void* data) { tensor.param = data; });
  lists.write_state(exp_avgs, dtypes.states, "exp_avgs", 0);
  lists.write_state(exp_avg_sqs, dtypes.states, "exp_avg_sqs", 1);
  if (amsgrad) lists.write_state(max_exp_avg_sqs, dtypes.states, "max_exp_avg_sqs", 2);
  lists.write(steps, at::kFloat, "steps", [](Tensor& tensor, void* data) { tensor.step = static_cast<float*>(data); });
  const AdamWSettings settings{step.rate, beta1, beta2, eps, weight_decay};
  adamw(lists.storage(), storage_of(dtypes.states), lists.tensors(), lists.count(), step.projection, settings,
        lists.workspace().mutable_data_ptr(), launch.stream());
  lists.write_back();
  step.write_back();
}

void project_sgd_(at::TensorList params, at::TensorList task, at::TensorList general, at::TensorList momentum_buffers,
                  at::Tensor& entries, const std::optional<at::Tensor>& coefficients,
                  const std::optional<at::Tensor>& lr_tensor, double lr, double momentum, double dampening,
                  double weight_decay, double lambda, int64_t scope, bool nesterov, bool maximize, bool first,
                  const std::optional<at::Tensor>& grad_scale, const std::optional<at::Tensor>& found_inf) {
  const Arguments arguments = check_update(at::kCUDA, params, task, general, entries, coefficients, lr_tensor, lambda,
                                           scope, grad_scale, found_inf);
  check_sgd_states(arguments, params, momentum_buffers, momentum);
  if (params.empty()) return;
  const Launch launch(params[0]);
  const Dtypes dtypes({params, task, general}, {momentum_buffers});
  const Step step(launch, dtypes.params, scope, entries, coefficients, lr_tensor, lr, lambda, maximize, grad_scale,
                  found_inf);
  Lists lists(launch, task, scope, dtypes.params);
  lists.read_gradients(task, general);
  lists.write(params, dtypes.params, "params", [](Tensor& tensor, void* data) { tensor.param = data; });
  lists.write_state(momentum_buffers, dtypes.states, "momentum_buffers", 0);
  const SGDSettings settings{step.rate, momentum, dampening, weight_decay, nesterov, first};
  sgd(lists.storage(), storage_of(dtypes.states), lists.tensors(), lists.count(), step.projection, settings,
      lists.workspace().mutable_data_ptr(), launch.stream());
  lists.write_back();
  step.write_back();
}

}  // namespace prograd::cuda
