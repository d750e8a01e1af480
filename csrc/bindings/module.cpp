// The Python module prograd_fast._C: what was built, registration, and the eager fast path.
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <pybind11/stl.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/utils/pybind.h>

#include <optional>
#include <vector>

#include "../common/arguments.h"
#include "../common/kept_memory.h"
#include "../common/library.h"
#include "../cpu/dispatch.h"
#include "../operators/updates.h"
#include "eager_loss.h"
#include "plain.h"
#include "release_graph.h"
#include "weighted_sum.h"

namespace prograd {
namespace {

namespace py = pybind11;

py::dict build_facts() {
  py::dict facts;
  facts["compiler"] = PF_COMPILER;
  facts["flags"] = PF_FLAGS;
  facts["torch"] = PF_TORCH_VERSION;
  py::list isas;
  for (const auto set : {cpu::InstructionSet::baseline, cpu::InstructionSet::avx2, cpu::InstructionSet::avx512}) {
    if (cpu::runs(set)) isas.append(cpu::name_of(set));
  }
  facts["instruction_sets"] = isas;
  facts["instruction_set"] = cpu::name_of(cpu::best());
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

// How Python gives an argument of an operator.
template <typename T>
struct FromPython {
  using type = T;
};
template <>
struct FromPython<at::TensorList> {
  using type = const Tensors&;
};
template <>
struct FromPython<at::Tensor&> {
  using type = at::Tensor;
};

bool plain_on_the_cpu(const at::Tensor& tensor) { return tensor.is_cpu() && plain(tensor); }
bool plain_on_the_cpu(const Tensors& tensors) {
  for (const at::Tensor& tensor : tensors) {
    if (!plain_on_the_cpu(tensor)) return false;
  }
  return true;
}
template <typename Other>
bool plain_on_the_cpu(const Other&) {
  return true;
}

void count_write(const at::Tensor& tensor) {
  if (!tensor.is_inference()) tensor.unsafeGetTensorImpl()->bump_version();
}
void count_write(const Tensors& tensors) {
  for (const at::Tensor& tensor : tensors) count_write(tensor);
}
template <typename Other>
void count_write(const Other&) {}

template <typename Arguments, typename Signature = typename Arguments::Signature>
struct Eager;

template <typename Arguments, typename... Each>
struct Eager<Arguments, void(Each...)> {
  template <void (*kernel)(const Arguments&)>
  static void call(typename FromPython<Each>::type... each) {
    static const auto dispatched = c10::Dispatcher::singleton()
                                       .findSchemaOrThrow(Arguments::name, "")
                                       .template typed<typename Arguments::Signature>();
    if (!(... && plain_on_the_cpu(each))) return dispatched.call(each...);
    {
      const at::AutoDispatchBelowADInplaceOrView below_autograd;
      kernel({each...});
    }
    auto argument = dispatched.schema().arguments().begin();
    const auto written = [&] {
      const c10::AliasInfo* alias = (argument++)->alias_info();
      return alias && alias->isWrite();
    };
    (..., (written() ? count_write(each) : void()));
  }
};

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

// project_out into new memory in the dtypes of `task`, laid out like other tensors; large results in kept memory.
Tensors projected(const Tensors& like, const Tensors& task, const Tensors& general, MaybeTensor coefficients,
                  double lambda, double noise_floor, int64_t scope, at::Tensor entries) {
  Tensors results;
  results.reserve(task.size());
  {
    const at::AutoDispatchBelowADInplaceOrView below_autograd;
    for (size_t i = 0; i < task.size(); ++i) {
      const at::Tensor& model = like.at(i);
      const at::TensorOptions options = model.options().dtype(task[i].scalar_type());
      const bool dense = plain_on_the_cpu(model) && model.is_contiguous();
      results.push_back(dense ? empty_in_kept_memory(model.sizes(), options) : at::empty_like(model, options));
    }
  }
  Eager<ProjectArguments>::call<cpu::project>(task, general, coefficients, lambda, noise_floor, scope, entries,
                                              results);
  return results;
}

// Memory for a result, kept memory where nothing but autograd looks at it.
at::Tensor empty(const at::Tensor& like, const std::vector<int64_t>& shape, at::ScalarType dtype) {
  const at::TensorOptions options = like.options().dtype(dtype);
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  return plain(like) && like.is_cpu() ? empty_in_kept_memory(shape, options) : at::empty(shape, options);
}

// What torch.optim.AdamW(fused=True) does to these parameters: the same operator, without the Python around it, which
// takes several times as long. False, and nothing done, where torch.optim has to look for itself: see `fit`; or the
// layouts of one parameter's tensors differ.
bool adamw(const Tensors& params, const Tensors& gradients, const Tensors& averages, const Tensors& squares,
           const Tensors& maxima, const Tensors& steps, double lr, double beta1, double beta2, double weight_decay,
           double eps, bool amsgrad, bool maximize) {
  std::vector<Tensors> belongings(params.size());
  for (size_t i = 0; i < params.size(); ++i) {
    belongings[i] = {gradients.at(i), averages.at(i), squares.at(i)};
    if (amsgrad) belongings[i].push_back(maxima.at(i));
  }
  if (steps.size() != params.size() || !fit(params, belongings, steps)) return false;
  for (size_t i = 0; i < params.size(); ++i) {
    const at::Tensor& param = params[i];
    if (!param.is_cpu() || !param.is_non_overlapping_and_dense() || steps[i].scalar_type() != at::kFloat) return false;
    if (!steps[i].is_cpu() || steps[i].is_inference() || param.scalar_type() != params[0].scalar_type()) return false;
    belongings[i].push_back(param);
    for (const at::Tensor& tensor : belongings[i]) {
      const bool alike = tensor.strides() == param.strides() && tensor.scalar_type() == param.scalar_type();
      if (!alike || tensor.is_inference() || tensor.is_neg() || tensor.is_conj()) return false;
    }
  }
  {
    const at::AutoDispatchBelowADInplaceOrView below_autograd;
    for (const at::Tensor& step : steps) *step.mutable_data_ptr<float>() += 1;
    at::_fused_adamw_(params, gradients, averages, squares, maxima, steps, lr, beta1, beta2, weight_decay, eps, amsgrad,
                      maximize);
  }
  for (const Tensors* written : {&params, &averages, &squares, &maxima, &steps}) count_write(*written);
  return true;
}

// (task, general, correct), or None where the way through torch.library must be taken; see eager_dual_loss.
py::object dual_loss(py::handle student, py::handle teacher, py::handle labels, py::handle teacher_offset,
                     py::handle task_weight, py::handle general_weight, double temperature, bool soft_ce,
                     int64_t reduction) {
  const auto is_tensor = [](py::handle object) { return THPVariable_CheckExact(object.ptr()); };  // of no subclass
  const auto may_be = [&](py::handle object) { return object.is_none() || is_tensor(object); };
  const auto tensor = [](py::handle object) -> const at::Tensor& { return THPVariable_Unpack(object.ptr()); };
  const auto maybe = [&](py::handle object) {
    return object.is_none() ? std::optional<at::Tensor>() : std::optional<at::Tensor>(tensor(object));
  };
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
  using c10::DispatchKey;
  m.def(
      "register_cpu", [] { register_operators(DispatchKey::CPU, families_of(DispatchKey::CPU)); },
      "Put the CPU kernels into the dispatcher.");
  m.def("unregister_cpu", [] { unregister_operators(DispatchKey::CPU); }, "Take them out.");
  const py::call_guard<py::gil_scoped_release> no_gil;
  m.def("project_adamw_", &Eager<AdamWArguments>::call<cpu::project_adamw>,
        "torch.ops.prograd_fast.project_adamw_ without the dispatcher.", no_gil);
  m.def("project_sgd_", &Eager<SGDArguments>::call<cpu::project_sgd>,
        "torch.ops.prograd_fast.project_sgd_ without the dispatcher.", no_gil);
  m.def("projected", &projected,
        "torch.ops.prograd_fast.project_out into new tensors; see prograd_fast/ops/projection.py.", no_gil);
  m.def("adamw", &adamw, "torch.optim.AdamW(fused=True) on tensors that fit; see prograd_fast/optim/adamw.py.", no_gil);
  m.def("fit", &fit, "Whether tensors, by parameter, have its shape and device; see prograd_fast/optim/states.py.",
        no_gil);
  m.def("release_graph", &release_graph, "Free what losses' graphs have saved; see prograd_fast/optim/one_backward.py.",
        no_gil);
  m.def("release_memory", &release_kept_memory, "Give memory that waits for large results back to the system.", no_gil);
  m.def("empty", &empty, "Memory for a result of an operator; see prograd_fast/ops/common.py.", no_gil);
  m.def("weighted_sum", &weighted_sum, "The gradient of losses by their cotangents; see prograd_fast/ops/losses.py.",
        no_gil);
  m.def("dual_loss", torch::wrap_pybind_function(&dual_loss), "torch.ops.prograd_fast.dual_loss for eager autograd.");
#ifdef PF_CUDA
  m.def(
      "cuda_families", [] { return families_of(DispatchKey::CUDA); },
      "The families of operators that have CUDA kernels.");
  m.def(
      "register_cuda",
      [](const std::vector<std::string>& families) { register_operators(DispatchKey::CUDA, families); },
      "Put the CUDA kernels of these families into the dispatcher.");
  m.def("unregister_cuda", [] { unregister_operators(DispatchKey::CUDA); }, "Take them out.");
#endif
}
