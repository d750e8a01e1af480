#include "eager_loss.h"

#include <ATen/ATen.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>

#include "../operators/dual_loss.h"
#include "plain.h"
#include "weighted_sum.h"

namespace prograd {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;
using Maybe = const std::optional<at::Tensor>&;

// Losses whose cotangents are known. A gradient that is differentiated in turn (create_graph=True) comes from the
// operator, whose further derivatives go through the formula, prograd_fast/ops/losses.py.
struct DualLoss : Function<DualLoss> {
  static constexpr bool is_traceable = true;  // by compiled autograd, whose tensors are not plain

  static variable_list forward(AutogradContext* ctx, const at::Tensor& student, const DualLossArguments& inputs,
                               const LossResults& results) {
    ctx->set_materialize_grads(false);  // a loss that is not used must not contribute 0 · inf = NaN
    ctx->save_for_backward({results.cotangents[0], results.cotangents[1], student, inputs.teacher, inputs.labels,
                            inputs.teacher_offset.value_or(at::Tensor()), inputs.task_weight.value_or(at::Tensor()),
                            inputs.general_weight.value_or(at::Tensor())});
    ctx->saved_data["options"] = c10::ivalue::Tuple::create(inputs.temperature, inputs.soft_ce, inputs.reduction);
    return {results.losses[0], results.losses[1]};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& gradients) {
    const variable_list saved = ctx->get_saved_variables();
    if (at::GradMode::is_enabled()) return through_operator(ctx, saved, gradients);
    variable_list factors, cotangents;
    for (size_t i = 0; i < gradients.size(); ++i) {
      if (!gradients[i].defined()) continue;
      factors.push_back(gradients[i]);
      cotangents.push_back(saved[i]);
    }
    if (factors.empty()) return {{}, {}, {}};
    return {sum(factors, cotangents).to(saved[2].scalar_type()), {}, {}};
  }

  static variable_list through_operator(AutogradContext* ctx, const variable_list& saved,
                                        const variable_list& gradients) {
    const auto maybe = [&](size_t i) { return saved[i].defined() ? std::optional(saved[i]) : std::nullopt; };
    const auto& options = ctx->saved_data["options"].toTupleRef().elements();
    static const auto dual_loss = c10::Dispatcher::singleton()
                                      .findSchemaOrThrow("prograd_fast::dual_loss", "")
                                      .typed<LossOperator<DualLossArguments>::Returned>();
    const auto [task, general, cotangents, correct] =
        dual_loss.call(saved[2], saved[3], saved[4], maybe(5), maybe(6), maybe(7), options[0].toDouble(),
                       options[1].toBool(), options[2].toInt());
    variable_list losses, factors;
    for (size_t i = 0; i < gradients.size(); ++i) {
      if (!gradients[i].defined()) continue;
      losses.push_back(i == 0 ? task : general);
      factors.push_back(gradients[i]);
    }
    if (losses.empty()) return {{}, {}, {}};
    return {
        torch::autograd::grad(losses, {saved[2]}, factors, /*retain_graph=*/true, /*create_graph=*/true)[0], {}, {}};
  }

  // Σ factors[k]·cotangents[k]. A loss that is differentiated by itself has the factor 1: its cotangent is the
  // gradient, and need not be copied. (Not asked on a GPU, where that would wait for the device.)
  static at::Tensor sum(const variable_list& factors, const variable_list& cotangents) {
    const at::Tensor& first = factors[0];
    const bool known = first.dim() == 0 && first.is_cpu() && !first.requires_grad() && plain(first);
    if (factors.size() == 1 && known && Numbers(first)[0] == 1) return cotangents[0];
    if (const std::optional<at::Tensor> total = weighted_sum(factors, cotangents)) return *total;
    at::Tensor total = factor_of(first) * cotangents[0];
    for (size_t k = 1; k < factors.size(); ++k) total = total + factor_of(factors[k]) * cotangents[k];
    return total;
  }
};

// What prograd_fast/ops/dual_loss.py asks, without the messages.
bool fit(const at::Tensor& student, const at::Tensor& teacher, const at::Tensor& labels, Maybe teacher_offset,
         Maybe task_weight, Maybe general_weight) {
  const auto fixed = [&](const at::Tensor& tensor) {
    return plain(tensor) && !tensor.requires_grad() && tensor.device() == student.device();
  };
  const auto stored = [](const at::Tensor& tensor) {
    return tensor.is_floating_point() && tensor.element_size() > 1;  // float8 is nothing that a loss is made of
  };
  const auto vector = [&](Maybe tensor, int64_t size) {
    return !tensor || (fixed(*tensor) && tensor->dim() == 1 && tensor->size(0) == size);
  };
  return plain(student) && stored(student) && student.dim() == 2 && fixed(teacher) && stored(teacher) &&
         teacher.sizes() == student.sizes() && at::isIntegralType(labels.scalar_type(), false) &&
         vector(labels, student.size(0)) && vector(teacher_offset, student.size(1)) &&
         vector(task_weight, student.size(0)) && vector(general_weight, student.size(0));
}

}  // namespace

std::optional<EagerLosses> eager_dual_loss(const at::Tensor& student, const at::Tensor& teacher,
                                           const at::Tensor& labels, Maybe teacher_offset, Maybe task_weight,
                                           Maybe general_weight, double temperature, bool soft_ce, int64_t reduction) {
  if (!fit(student, teacher, labels, teacher_offset, task_weight, general_weight)) return std::nullopt;
  static const auto kernel = c10::Dispatcher::singleton()
                                 .findSchemaOrThrow("prograd_fast::dual_loss_out", "")
                                 .typed<LossOperator<DualLossArguments>::Out>();
  const bool differentiable = student.requires_grad() && at::GradMode::is_enabled();
  const at::Tensor indices = labels.to(at::kLong);
  const DualLossArguments inputs{student,        teacher,     indices, teacher_offset, task_weight,
                                 general_weight, temperature, soft_ce, reduction};
  const at::AutoDispatchBelowADInplaceOrView below_autograd;  // the two losses are then no views of each other
  LossResults results = inputs.room();
  kernel.call(student, teacher, indices, teacher_offset, task_weight, general_weight, temperature, soft_ce, reduction,
              results.losses, results.cotangents, results.correct);
  if (!differentiable) return {{results.losses[0], results.losses[1], results.correct}};
  const variable_list losses = DualLoss::apply(student, inputs, results);
  return {{losses[0], losses[1], results.correct}};
}

}  // namespace prograd
