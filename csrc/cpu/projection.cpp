// gram_out, project_, project_adamw_ and project_sgd_ on CPU tensors.
#include <ATen/ATen.h>

#include "../checks.h"
#include "../operators.h"
#include "kernels.h"
#include "operand.h"
#include "units.h"

namespace prograd::cpu {
namespace {

struct Coefficients {
  double alpha, beta;
};

// The gradients of one tensor.
struct Gradients {
  Storage storage;
  at::Tensor task, general;

  Gradients(const at::Tensor& a, const at::Tensor& b, at::ScalarType dtype)
      : storage(storage_of(dtype)), task(contiguous(a, dtype)), general(contiguous(b, dtype)) {}

  const char* task_at(int64_t i) const { return static_cast<const char*>(data_of(task)) + i * task.itemsize(); }
  const char* general_at(int64_t i) const { return static_cast<const char*>(data_of(general)) + i * task.itemsize(); }
};

using GradientList = c10::SmallVector<Gradients, 4>;

struct Sums {
  double task = 0, dot = 0, general = 0;

  // chunk after chunk, in double: the sum over chunks adds no error of its own
  void add(const Gradients& gradients, int64_t begin, int64_t end, double task_scale) {
    double sums[3];
    kernels().gram(gradients.storage, gradients.task_at(begin), gradients.general_at(begin), end - begin, task_scale,
                   sums);
    task += sums[0], dot += sums[1], general += sums[2];
  }
  void add(const Sums& other) { task += other.task, dot += other.dot, general += other.general; }
};

Sums sums_of(const Gradients& gradients, const Unit& unit, double task_scale) {
  Sums sums;
  for (int64_t begin = unit.begin; begin < unit.end; begin += chunk_size) {
    sums.add(gradients, begin, std::min(begin + chunk_size, unit.end), task_scale);
  }
  return sums;
}

void write_entry(const at::Tensor& entries, int64_t i, const Sums& sums) {
  set(entries, 3 * i, sums.task);
  set(entries, 3 * i + 1, sums.dot);
  set(entries, 3 * i + 2, sums.general);
}

// ProGrad's, from the entries as they were written: in their dtype, as the reference.
Coefficients prograd_coefficients(const at::Tensor& entries, int64_t i, double lambda) {
  const double dot = get(entries, 3 * i + 1), norm = get(entries, 3 * i + 2);
  const bool wide = entries.scalar_type() == at::kDouble;
  return {1, wide ? conflict_beta<double>(dot, norm, lambda)
                  : conflict_beta<float>(float(dot), float(norm), float(lambda))};
}

// The sums of all units that are not in one pass, by entry; `then` runs on the others as soon as theirs are written.
template <typename Then>
void write_entries(const Units& units, const GradientList& gradients, double task_scale, const at::Tensor& entries,
                   bool one_pass, const Then& then) {
  std::vector<Sums> partial(units.chunks());
  units.each_part(false, [&](const Unit& unit, int64_t begin, int64_t end) {
    if (one_pass && unit.one_pass) {
      write_entry(entries, unit.entry, sums_of(gradients[unit.tensor], unit, task_scale));
      then(unit);
      return;
    }
    for (int64_t at = begin; at < end; at += chunk_size) {
      partial[unit.first_chunk + (at - unit.begin) / chunk_size].add(gradients[unit.tensor], at,
                                                                     std::min(at + chunk_size, end), task_scale);
    }
  });
  Sums all;
  for (const Unit& unit : units) {
    const int64_t chunks = (unit.end - unit.begin + chunk_size - 1) / chunk_size;
    if (one_pass && unit.one_pass && chunks > 0) continue;
    Sums sums;
    for (int64_t chunk = 0; chunk < chunks; ++chunk) sums.add(partial[unit.first_chunk + chunk]);
    all.add(sums);
    write_entry(entries, unit.entry, units.entries() == 1 ? all : sums);
  }
}

double value_or(const std::optional<at::Tensor>& tensor, double otherwise) {
  return tensor ? tensor->item<double>() : otherwise;
}

// What the two optimizers share: coefficients for every unit, then update(unit, begin, end, coefficients) on all of its
// elements. `coefficients.alpha` is that of the task gradient as it came, unscaling and sign included.
template <typename Update>
void project_and_update(const Units& units, const GradientList& gradients, at::Tensor& given_entries,
                        const std::optional<at::Tensor>& given_coefficients, double lambda, bool maximize,
                        const std::optional<at::Tensor>& grad_scale, const std::optional<at::Tensor>& found_inf,
                        const Update& update) {
  const double task_scale = 1 / value_or(grad_scale, 1), sign = maximize ? -1 : 1;
  const bool skip = value_or(found_inf, 0) > 0;
  const auto apply = [&](const Unit& unit, int64_t begin, int64_t end, Coefficients c) {
    update(unit, begin, end, Coefficients{sign * c.alpha * task_scale, sign * c.beta});
  };
  if (given_coefficients) {
    const at::Tensor coefficients = contiguous(*given_coefficients, accumulation_dtype(given_coefficients->scalar_type()));
    if (skip) return;
    units.each_part(false, [&](const Unit& unit, int64_t begin, int64_t end) {
      apply(unit, begin, end, {get(coefficients, 2 * unit.entry), get(coefficients, 2 * unit.entry + 1)});
    });
    return;
  }
  const Written written(given_entries, accumulation_dtype(given_entries.scalar_type()));
  const at::Tensor& entries = written.tensor();
  write_entries(units, gradients, task_scale, entries, true, [&](const Unit& unit) {
    if (!skip) apply(unit, unit.begin, unit.end, prograd_coefficients(entries, unit.entry, lambda));
  });
  if (!skip) {
    bool left = false;
    for (const Unit& unit : units) left = left || !unit.one_pass;
    if (left) {
      units.each_part(true, [&](const Unit& unit, int64_t begin, int64_t end) {
        if (!unit.one_pass) apply(unit, begin, end, prograd_coefficients(entries, unit.entry, lambda));
      });
    }
  }
  written.write_back();
}

}  // namespace

void gram_out(at::TensorList task, at::TensorList general, int64_t scope, at::Tensor& entries) {
  check_gradients(at::kCPU, task, general, scope, &entries, nullptr);
  const Units units(task, scope);
  GradientList gradients;
  for (size_t i = 0; i < task.size(); ++i) {
    gradients.emplace_back(task[i], general[i], common_dtype(task[i], general[i]));
  }
  const Written written(entries, accumulation_dtype(entries.scalar_type()));
  write_entries(units, gradients, 1, written.tensor(), false, [](const Unit&) {});
  written.write_back();
}

void project_(at::TensorList task, at::TensorList general, const at::Tensor& given_coefficients, int64_t scope) {
  check_gradients(at::kCPU, task, general, scope, nullptr, &given_coefficients, true);
  const Units units(task, scope);
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
    kernels().project(pair.storage, written[unit.tensor].data() + begin * pair.task.itemsize(), pair.general_at(begin),
                      end - begin, get(coefficients, 2 * unit.entry), get(coefficients, 2 * unit.entry + 1));
  });
  for (const Written& tensor : written) tensor.write_back();
}

namespace {

// One parameter and its state.
struct Parameter {
  Storage moments;
  Written param;
  Written states[3];

  char* at(const Written& tensor, int64_t i) const {
    return tensor.data() ? tensor.data() + i * tensor.tensor().itemsize() : nullptr;
  }
  void write_back() const {
    param.write_back();
    for (const Written& state : states) {
      if (state.data()) state.write_back();
    }
  }
};

// The dtypes that one kernel call takes: all alike, or moments in the accumulation dtype.
struct Dtypes {
  at::ScalarType param, moments;

  Dtypes(const at::Tensor& p, const at::Tensor& a, const at::Tensor& b, const at::Tensor* m, const at::Tensor* v)
      : param(common_dtype(p, a, b)), moments(param) {
    if (!m) return;
    const at::ScalarType state = common_dtype(*m, *v);
    if (state == param) return;
    moments = accumulation_dtype(param);
    if (state == moments) return;
    param = moments = param == at::kDouble || state == at::kDouble ? at::kDouble : at::kFloat;
  }
};

using ParameterList = c10::SmallVector<Parameter, 4>;

}  // namespace

void project_adamw_(at::TensorList params, at::TensorList task, at::TensorList general, at::TensorList exp_avgs,
                    at::TensorList exp_avg_sqs, at::TensorList max_exp_avg_sqs, at::TensorList steps,
                    at::Tensor& entries, const std::optional<at::Tensor>& coefficients,
                    const std::optional<at::Tensor>& lr_tensor, double lr, double beta1, double beta2, double eps,
                    double weight_decay, double lambda, int64_t scope, bool amsgrad, bool maximize,
                    const std::optional<at::Tensor>& grad_scale, const std::optional<at::Tensor>& found_inf) {
  const Arguments arguments = check_update(at::kCPU, params, task, general, entries, coefficients, lr_tensor, lambda,
                                           scope, grad_scale, found_inf);
  check_adamw_states(arguments, params, exp_avgs, exp_avg_sqs, max_exp_avg_sqs, steps, amsgrad);
  const Units units(params, scope);
  const bool skip = value_or(found_inf, 0) > 0;
  lr = value_or(lr_tensor, lr);
  GradientList gradients;
  ParameterList parameters;
  c10::SmallVector<AdamW<double>, 4> formulas;
  double step = -1;
  for (size_t i = 0; i < params.size(); ++i) {
    const Dtypes dtypes(params[i], task[i], general[i], &exp_avgs[i], &exp_avg_sqs[i]);
    gradients.emplace_back(task[i], general[i], dtypes.param);
    parameters.push_back({storage_of(dtypes.moments),
                          {params[i], dtypes.param},
                          {{exp_avgs[i], dtypes.moments},
                           {exp_avg_sqs[i], dtypes.moments},
                           amsgrad ? Written(max_exp_avg_sqs[i], dtypes.moments) : Written()}});
    const double next = get(steps[i], 0) + 1;
    if (!skip) set(steps[i], 0, next);
    // pow is slow, and the parameters of a group are mostly of one age
    formulas.push_back(i > 0 && next == step ? formulas[i - 1] : AdamW<double>::at(next, lr, beta1, beta2, eps, weight_decay));
    step = next;
  }
  const Kernels& table = kernels();
  project_and_update(units, gradients, entries, coefficients, lambda, maximize, grad_scale, found_inf,
                     [&](const Unit& unit, int64_t begin, int64_t end, Coefficients c) {
                       const Gradients& pair = gradients[unit.tensor];
                       const Parameter& p = parameters[unit.tensor];
                       const Kernels::AdamWTensors tensors{p.at(p.param, begin),     pair.task_at(begin),
                                                           pair.general_at(begin),   p.at(p.states[0], begin),
                                                           p.at(p.states[1], begin), p.at(p.states[2], begin)};
                       table.adamw(pair.storage, p.moments, tensors, end - begin, formulas[unit.tensor], c.alpha,
                                   c.beta);
                     });
  for (const Parameter& parameter : parameters) parameter.write_back();
}

void project_sgd_(at::TensorList params, at::TensorList task, at::TensorList general, at::TensorList momentum_buffers,
                  at::Tensor& entries, const std::optional<at::Tensor>& coefficients,
                  const std::optional<at::Tensor>& lr_tensor, double lr, double momentum, double dampening,
                  double weight_decay, double lambda, int64_t scope, bool nesterov, bool maximize, bool first,
                  const std::optional<at::Tensor>& grad_scale, const std::optional<at::Tensor>& found_inf) {
  const Arguments arguments = check_update(at::kCPU, params, task, general, entries, coefficients, lr_tensor, lambda,
                                           scope, grad_scale, found_inf);
  check_sgd_states(arguments, params, momentum_buffers, momentum);
  const Units units(params, scope);
  const SGD<double> formula{value_or(lr_tensor, lr), momentum, 1 - dampening, weight_decay, nesterov, first};
  const bool has_buffers = !momentum_buffers.empty();
  GradientList gradients;
  ParameterList parameters;
  for (size_t i = 0; i < params.size(); ++i) {
    const at::Tensor* buffer = has_buffers ? &momentum_buffers[i] : nullptr;
    const Dtypes dtypes(params[i], task[i], general[i], buffer, buffer);
    gradients.emplace_back(task[i], general[i], dtypes.param);
    parameters.push_back({storage_of(dtypes.moments),
                          {params[i], dtypes.param},
                          {has_buffers ? Written(*buffer, dtypes.moments) : Written(), {}, {}}});
  }
  const Kernels& table = kernels();
  project_and_update(units, gradients, entries, coefficients, lambda, maximize, grad_scale, found_inf,
                     [&](const Unit& unit, int64_t begin, int64_t end, Coefficients c) {
                       const Gradients& pair = gradients[unit.tensor];
                       const Parameter& p = parameters[unit.tensor];
                       const Kernels::SGDTensors tensors{p.at(p.param, begin), pair.task_at(begin),
                                                         pair.general_at(begin), p.at(p.states[0], begin)};
                       table.sgd(pair.storage, p.moments, tensors, end - begin, formula, c.alpha, c.beta);
                     });
  for (const Parameter& parameter : parameters) parameter.write_back();
}

}  // namespace prograd::cpu
