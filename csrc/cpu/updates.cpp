// project_adamw_ and project_sgd_ on CPU tensors.
#include "updates.h"

#include "../common/library.h"
#include "../operators/updates.h"
#include "tensor_lists.h"

namespace prograd::cpu {
namespace {

double value_or(MaybeTensor tensor, double otherwise) { return tensor ? tensor->item<double>() : otherwise; }

// One parameter, its gradients and its state, in the dtypes that one kernel call takes: all alike, or moments in the
// accumulation dtype.
class Parameter {
 public:
  // first, second: moments that decide; null where there are none.
  Parameter(const at::Tensor& param, const at::Tensor& task, const at::Tensor& general, const at::Tensor* first,
            const at::Tensor* second)
      : dtype_(common_dtype(param, task, general)), moments_(dtype_) {
    if (first) {
      const at::ScalarType state = common_dtype(*first, *second);
      if (state != dtype_) moments_ = accumulation_dtype(dtype_);
      if (state != moments_) dtype_ = moments_ = accumulation_dtype(at::promote_types(dtype_, state));
    }
    param_ = Written(param, dtype_);
  }

  Gradients gradients(const at::Tensor& task, const at::Tensor& general) const { return {task, general, dtype_}; }
  const UpdateKernels& kernels() const { return kernels_for<UpdateKernels>(storage_of(dtype_)); }
  bool wide_moments() const { return moments_ != dtype_; }

  void add_state(const at::Tensor& state) { states_.emplace_back(state, moments_); }
  char* param_at(int64_t i) const { return at(param_, i); }
  char* state_at(size_t k, int64_t i) const { return k < states_.size() ? at(states_[k], i) : nullptr; }

  void write_back() const {
    param_.write_back();
    for (const Written& state : states_) state.write_back();
  }

 private:
  static char* at(const Written& tensor, int64_t i) { return tensor.data() + i * tensor.tensor().itemsize(); }

  at::ScalarType dtype_, moments_;
  Written param_;
  c10::SmallVector<Written, 3> states_;
};

// Everything that both optimizers do but the step itself.
template <typename Arguments>
class Update {
 public:
  explicit Update(const Arguments& all)
      : skipped(value_or(all.found_inf, 0) > 0), lr(value_or(all.lr_tensor, all.lr)), all_(all) {}

  const bool skipped;
  const double lr;

  Parameter& add(size_t i, const at::Tensor* first_moment, const at::Tensor* second_moment) {
    const at::Tensor &task = all_.task[i], &general = all_.general[i];
    parameters_.emplace_back(all_.params[i], task, general, first_moment, second_moment);
    gradients_.push_back(parameters_.back().gradients(task, general));
    return parameters_.back();
  }

  // step(tensor, parameter, gradients, begin, end, coefficients) on all elements of all units. The sign of `maximize`
  // is in the coefficients.
  template <typename Step>
  void run(const Step& step) {
    const Units units(all_.params, Scope(all_.scope));
    const double sign = all_.maximize ? -1 : 1;
    project_units(units, gradients_, all_, skipped, [&](const Unit& unit, int64_t begin, int64_t end, Coefficients c) {
      step(unit.tensor, parameters_[unit.tensor], gradients_[unit.tensor], begin, end,
           Coefficients{sign * c.alpha, sign * c.beta});
    });
    for (const Parameter& parameter : parameters_) parameter.write_back();
  }

 private:
  const Arguments& all_;
  c10::SmallVector<Parameter, 4> parameters_;
  GradientList gradients_;
};

}  // namespace

void project_adamw(const AdamWArguments& all) {
  check_update(at::kCPU, all);
  Update update(all);
  c10::SmallVector<AdamW<double>, 4> formulas;
  double step = -1;
  for (size_t i = 0; i < all.params.size(); ++i) {
    Parameter& parameter = update.add(i, &all.exp_avgs[i], &all.exp_avg_sqs[i]);
    parameter.add_state(all.exp_avgs[i]);
    parameter.add_state(all.exp_avg_sqs[i]);
    if (all.amsgrad) parameter.add_state(all.max_exp_avg_sqs[i]);
    const double next = Numbers(all.steps[i])[0] + 1;
    if (!update.skipped) WrittenNumbers(all.steps[i]).set(0, next);
    // pow is slow, and the parameters of a group are mostly of one age
    formulas.push_back(i > 0 && next == step
                           ? formulas[i - 1]
                           : AdamW<double>::at(next, update.lr, all.beta1, all.beta2, all.eps, all.weight_decay));
    step = next;
  }
  update.run([&](int64_t i, const Parameter& p, const Gradients& pair, int64_t begin, int64_t end, Coefficients c) {
    const AdamWTensors tensors{p.param_at(begin),    pair.task_at(begin),  pair.general_at(begin),
                               p.state_at(0, begin), p.state_at(1, begin), p.state_at(2, begin)};
    p.kernels().adamw(p.wide_moments(), tensors, end - begin, formulas[i], c.alpha, c.beta);
  });
}

void project_sgd(const SGDArguments& all) {
  check_update(at::kCPU, all);
  Update update(all);
  const SGD<double> formula{update.lr, all.momentum, 1 - all.dampening, all.weight_decay, all.nesterov, all.first};
  for (size_t i = 0; i < all.params.size(); ++i) {
    const at::Tensor* buffer = all.momentum_buffers.empty() ? nullptr : &all.momentum_buffers[i];
    Parameter& parameter = update.add(i, buffer, buffer);
    if (buffer) parameter.add_state(*buffer);
  }
  update.run([&](int64_t, const Parameter& p, const Gradients& pair, int64_t begin, int64_t end, Coefficients c) {
    const SGDTensors tensors{p.param_at(begin), pair.task_at(begin), pair.general_at(begin), p.state_at(0, begin)};
    p.kernels().sgd(p.wide_moments(), tensors, end - begin, formula, c.alpha, c.beta);
  });
}

namespace {

const Registration registration(c10::DispatchKey::CPU, [](torch::Library& library) {
  library.impl("project_adamw_", TORCH_FN(Unpacked<AdamWArguments>::call<project_adamw>));
  library.impl("project_sgd_", TORCH_FN(Unpacked<SGDArguments>::call<project_sgd>));
});

}  // namespace
}  // namespace prograd::cpu
