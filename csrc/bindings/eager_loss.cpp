#include "eager_loss.h"

#include <ATen/ATen.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/custom_function.h>

#include "../operators/dual_loss.h"
#include "plain.h"

namespace prograd {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;
using Maybe = const std::optional<at::Tensor>&;

// The identity on a gradient that depends on `argument` in a way autograd does not know.
struct FirstDerivative : Function<FirstDerivative> {
  static at::Tensor forward(AutogradContext*, const at::Tensor& gradient, const at::Tensor&) {
    return gradient.view_as(gradient);
  }
  static variable_list backward(AutogradContext*, const variable_list&) {
    TORCH_CHECK(false,
                "dual_loss: expected to be differentiated once, got a second derivative; the kernels have none. "
                "Use prograd_fast.reference.dual_loss, which autograd differentiates any number of times.");
  }
};

// Losses whose cotangents are known.
struct DualLoss : Function<DualLoss> {
  static constexpr bool is_traceable = true;  // by compiled autograd, whose tensors are not plain

  static variable_list forward(AutogradContext* ctx, const at::Tensor& student, const LossResults& results) {
    ctx->set_materialize_grads(false);  // a loss that is not used must not contribute 0 · inf = NaN
    ctx->save_for_backward({student, results.cotangents[0], results.cotangents[1]});
    return {results.losses[0], results.losses[1]};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& gradients) {
    const variable_list saved = ctx->get_saved_variables();
    at::Tensor total;
    for (size_t i = 0; i < gradients.size(); ++i) {
      if (!gradients[i].defined()) continue;
      const at::Tensor part = times(gradients[i], saved[i + 1]);
      total = total.defined() ? total + part : part;
    }
    if (total.defined() && at::GradMode::is_enabled()) total = FirstDerivative::apply(total, saved[0]);
    return {total, {}};
  }

  // A loss that is differentiated by itself has the factor 1: its cotangent is the gradient, and need not be copied.
  // (Not asked on a GPU, where that would wait for the device.)
  static at::Tensor times(const at::Tensor& gradient, const at::Tensor& cotangent) {
    const bool known = gradient.dim() == 0 && gradient.is_cpu() && !gradient.requires_grad() && plain(gradient);
    if (known && gradient.item<double>() == 1) return cotangent;
    // (B,) without reduction, else 0-d: a factor per row, or one for all
    const at::Tensor factor = gradient.dim() ? gradient.unsqueeze(1) : gradient;
    return (factor * cotangent).to(cotangent.scalar_type());
  }
};

// What prograd_fast/checks.py asks, without the messages.
bool fit(const at::Tensor& student, const at::Tensor& teacher, const at::Tensor& labels, Maybe teacher_offset,
         Maybe task_weight, Maybe general_weight) {
  const auto fixed = [&](const at::Tensor& tensor) {
    return plain(tensor) && !tensor.requires_grad() && tensor.device() == student.device();
  };
  const auto vector = [&](Maybe tensor, int64_t size) {
    return !tensor || (fixed(*tensor) && tensor->dim() == 1 && tensor->size(0) == size);
  };
  return plain(student) && student.is_floating_point() && student.dim() == 2 && fixed(teacher) &&
         teacher.is_floating_point() && teacher.sizes() == student.sizes() &&
         at::isIntegralType(labels.scalar_type(), false) && vector(labels, student.size(0)) &&
         vector(teacher_offset, student.size(1)) && vector(task_weight, student.size(0)) &&
         vector(general_weight, student.size(0));
}

}  // namespace

std::optional<std::pair<at::Tensor, at::Tensor>> eager_dual_loss(const at::Tensor& student, const at::Tensor& teacher,
                                                                 const at::Tensor& labels, Maybe teacher_offset,
                                                                 Maybe task_weight, Maybe general_weight,
                                                                 double temperature, bool soft_ce, int64_t reduction) {
  if (!fit(student, teacher, labels, teacher_offset, task_weight, general_weight)) return std::nullopt;
  static const auto kernel = c10::Dispatcher::singleton()
                                 .findSchemaOrThrow("prograd_fast::dual_loss_out", "")
                                 .typed<LossOperator<DualLossArguments>::Out>();
  const bool differentiable = student.requires_grad() && at::GradMode::is_enabled();
  variable_list losses;
  {
    const at::AutoDispatchBelowADInplaceOrView below_autograd;  // the two losses are then no views of each other
    LossResults results(student, teacher, reduction, student);
    kernel.call(student, teacher, labels.to(at::kLong), teacher_offset, task_weight, general_weight, temperature,
                soft_ce, reduction, results.losses, results.cotangents, results.correct);
    losses = differentiable ? DualLoss::apply(student, results) : variable_list{results.losses[0], results.losses[1]};
  }
  return {{losses[0], losses[1]}};
}

}  // namespace prograd
