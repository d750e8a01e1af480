// The Python module prograd_fast._C: what was built, registration, and the eager fast path.
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <pybind11/stl.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/utils/pybind.h>

#include <initializer_list>
#include <optional>
#include <vector>

#include "checks.h"
#include "cpu/kernels.h"
#include "eager_loss.h"
#include "library.h"
#include "operators.h"
#include "plain.h"

namespace prograd {
namespace {

namespace py = pybind11;

py::dict build_facts() {
  py::dict facts;
  facts["compiler"] = PF_COMPILER;
  facts["flags"] = PF_FLAGS;
  facts["torch"] = PF_TORCH_VERSION;
  py::list isas;
  for (const char* isa : {"baseline", "avx2", "avx512"}) {
    if (kernels_for(isa)) isas.append(isa);
  }
  facts["instruction_sets"] = isas;
  facts["instruction_set"] = kernels().isa;
#ifdef PF_CUDA
  facts["cuda"] = PF_CUDA_VERSION;
  facts["cuda_architectures"] = PF_CUDA_ARCHITECTURES;
#else
  facts["cuda"] = py::none();
#endif
  return facts;
}

// The eager fast path: for a prompt of 8192 elements, boxing some twenty arguments for the dispatcher takes longer than
// the step itself. Same kernels, for plain CPU tensors; where one of them is something else, the dispatcher is asked.
using Tensors = std::vector<at::Tensor>;
using MaybeTensor = std::optional<at::Tensor>;
using Lists = std::initializer_list<at::TensorList>;

bool plain_on_the_cpu(Lists lists) {
  for (at::TensorList list : lists) {
    for (const at::Tensor& tensor : list) {
      if (!tensor.is_cpu() || !plain(tensor)) return false;
    }
  }
  return true;
}

void count_writes(Lists lists) {
  for (at::TensorList list : lists) {
    for (const at::Tensor& tensor : list) {
      if (!tensor.is_inference()) tensor.unsafeGetTensorImpl()->bump_version();
    }
  }
}

template <typename Signature>
auto operator_named(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

void project_adamw_(const Tensors& params, const Tensors& task, const Tensors& general, const Tensors& exp_avgs,
                    const Tensors& exp_avg_sqs, const Tensors& max_exp_avg_sqs, const Tensors& steps,
                    at::Tensor entries, const MaybeTensor& coefficients, const MaybeTensor& lr_tensor, double lr,
                    double beta1, double beta2, double eps, double weight_decay, double lambda, int64_t scope,
                    bool amsgrad, bool maximize, const MaybeTensor& grad_scale, const MaybeTensor& found_inf) {
  const auto call = [&](const auto& kernel) {
    kernel(params, task, general, exp_avgs, exp_avg_sqs, max_exp_avg_sqs, steps, entries, coefficients, lr_tensor, lr,
           beta1, beta2, eps, weight_decay, lambda, scope, amsgrad, maximize, grad_scale, found_inf);
  };
  if (!plain_on_the_cpu({params, task, general, exp_avgs, exp_avg_sqs, max_exp_avg_sqs, steps, entries})) {
    static const auto dispatched = operator_named<decltype(cpu::project_adamw_)>("prograd_fast::project_adamw_");
    return call([](auto&&... arguments) { dispatched.call(arguments...); });
  }
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  call(cpu::project_adamw_);
  count_writes({params, exp_avgs, exp_avg_sqs, max_exp_avg_sqs, steps, entries});
}

void project_sgd_(const Tensors& params, const Tensors& task, const Tensors& general, const Tensors& momentum_buffers,
                  at::Tensor entries, const MaybeTensor& coefficients, const MaybeTensor& lr_tensor, double lr,
                  double momentum, double dampening, double weight_decay, double lambda, int64_t scope, bool nesterov,
                  bool maximize, bool first, const MaybeTensor& grad_scale, const MaybeTensor& found_inf) {
  const auto call = [&](const auto& kernel) {
    kernel(params, task, general, momentum_buffers, entries, coefficients, lr_tensor, lr, momentum, dampening,
           weight_decay, lambda, scope, nesterov, maximize, first, grad_scale, found_inf);
  };
  if (!plain_on_the_cpu({params, task, general, momentum_buffers, entries})) {
    static const auto dispatched = operator_named<decltype(cpu::project_sgd_)>("prograd_fast::project_sgd_");
    return call([](auto&&... arguments) { dispatched.call(arguments...); });
  }
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  call(cpu::project_sgd_);
  count_writes({params, momentum_buffers, entries});
}

// Whether the tensors that belong to each parameter have its shape, device and memory of their own, and each of the
// numbers is one. False also where only a closer look can tell: the message is Python's, prograd_fast/optim/states.py.
bool fit(const Tensors& params, const std::vector<Tensors>& belongings, const Tensors& numbers) {
  const auto is_plain = [](const at::Tensor& tensor) { return tensor.defined() && plain(tensor); };
  try {
    for (size_t i = 0; i < params.size(); ++i) {
      if (!is_plain(params[i])) return false;
      const Arguments arguments("param", params[i], params[i].device().type());
      arguments.result("param", params[i], params[i].sizes());
      for (const at::Tensor& tensor : belongings.at(i)) {
        if (!is_plain(tensor)) return false;
        arguments.result("tensor", tensor, params[i].sizes());
      }
    }
    for (const at::Tensor& number : numbers) {
      const at::ScalarType dtype = number.defined() ? number.scalar_type() : at::kByte;
      if (!(dtype == at::kFloat || dtype == at::kDouble) || !plain(number) || number.numel() != 1) return false;
      Arguments("number", number, number.device().type()).number("number", number);
    }
    return true;
  } catch (const c10::Error&) {
    return false;
  }
}

// (task, general, correct), or None where the way through torch.library must be taken; see eager_dual_loss.
py::object dual_loss(py::handle student, py::handle teacher, py::handle labels, py::handle teacher_offset,
                     py::handle task_weight, py::handle general_weight, double temperature, bool soft_ce,
                     int64_t reduction) {
  const auto is_tensor = [](py::handle object) { return THPVariable_CheckExact(object.ptr()); };  // of no subclass
  const auto may_be = [&](py::handle object) { return object.is_none() || is_tensor(object); };
  const auto tensor = [](py::handle object) -> const at::Tensor& { return THPVariable_Unpack(object.ptr()); };
  const auto maybe = [&](py::handle object) { return object.is_none() ? MaybeTensor() : MaybeTensor(tensor(object)); };
  if (!is_tensor(student) || !is_tensor(teacher) || !is_tensor(labels) || !may_be(teacher_offset) ||
      !may_be(task_weight) || !may_be(general_weight)) {
    return py::none();
  }
  std::optional<EagerLosses> losses;
  {
    const py::gil_scoped_release no_gil;
    losses = eager_dual_loss(tensor(student), tensor(teacher), tensor(labels), maybe(teacher_offset),
                             maybe(task_weight), maybe(general_weight), temperature, soft_ce, reduction);
  }
  if (!losses) return py::none();
  return py::make_tuple(losses->task, losses->general, losses->correct);
}

}  // namespace
}  // namespace prograd

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  using namespace prograd;
  m.def("build_facts", &build_facts, "Compiler, flags, instruction sets, CUDA.");
  m.def("register_cpu", &register_cpu, "Put the CPU kernels into the dispatcher.");
  m.def("unregister_cpu", &unregister_cpu, "Take them out.");
  const py::call_guard<py::gil_scoped_release> no_gil;
  m.def("project_adamw_", &project_adamw_, "torch.ops.prograd_fast.project_adamw_ without the dispatcher.", no_gil);
  m.def("project_sgd_", &project_sgd_, "torch.ops.prograd_fast.project_sgd_ without the dispatcher.", no_gil);
  m.def("fit", &fit, "Whether tensors, by parameter, have its shape and device; see prograd_fast/optim/states.py.", no_gil);
  m.def("dual_loss", torch::wrap_pybind_function(&dual_loss), "torch.ops.prograd_fast.dual_loss for eager autograd.");
#ifdef PF_CUDA
  m.def("register_cuda", &register_cuda, "Put the CUDA kernels into the dispatcher.");
  m.def("unregister_cuda", &unregister_cuda, "Take them out.");
#endif
}
