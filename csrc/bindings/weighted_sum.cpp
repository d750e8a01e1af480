#include "weighted_sum.h"

#include <ATen/ATen.h>
#include <ATen/core/LegacyTypeDispatch.h>

#include "../common/kept_memory.h"
#include "../common/operand.h"
#include "plain.h"

namespace prograd {

// A factor per row, or one for all.
at::Tensor factor_of(const at::Tensor& gradient) { return gradient.dim() ? gradient.unsqueeze(1) : gradient; }

std::optional<at::Tensor> weighted_sum(const std::vector<at::Tensor>& gradients,
                                       const std::vector<at::Tensor>& cotangents) {
  for (const std::vector<at::Tensor>* tensors : {&gradients, &cotangents}) {
    for (const at::Tensor& tensor : *tensors) {
      if (!plain(tensor) || !tensor.is_cpu() || tensor.scalar_type() != cotangents[0].scalar_type())
        return std::nullopt;
    }
  }
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  at::Tensor sum = empty_in_kept_memory(cotangents[0].sizes(), cotangents[0].options());
  if (gradients.size() == 2 && !gradients[0].dim() && !gradients[1].dim() && Numbers(gradients[0])[0] == 1) {
    at::add_out(sum, cotangents[0], cotangents[1], Numbers(gradients[1])[0]);
    return sum;
  }
  at::mul_out(sum, factor_of(gradients[0]), cotangents[0]);
  for (size_t k = 1; k < gradients.size(); ++k) sum.addcmul_(factor_of(gradients[k]), cotangents[k]);
  return sum;
}

}  // namespace prograd
