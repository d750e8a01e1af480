"""xERM: two cross-entropies whose weights come, row by row, from how well a frozen teacher's two predictions fit."""

import torch
from torch import Tensor

from prograd_fast.ops.common import accumulation_dtype


def xerm_weights(
    factual_logits: Tensor, counterfactual_logits: Tensor, labels: Tensor, gamma: float, eps: float = 1e-5
) -> tuple[Tensor, Tensor]:
    """The weights of both losses.

        ℓ_f = CE(f, y)^γ,  ℓ_c = CE(c, y)^γ,  w_c = ℓ_c / (ℓ_c + ℓ_f + ε),  w_f = 1 - w_c

    A row that both predictions fit perfectly (0/0 where ε = 0) has w_f = 1, which is the limit with ε > 0.

    Source: Zhu et al., Cross-Domain Empirical Risk Minimization for Unbiased Long-tailed Classification
    (arXiv:2112.14380); `BeierZhu/xERM`, xERM.PC.public/loss/xERMLoss.py (ε = 1e-5), xERM.TDE.public/loss/xERM_loss.py
    (ε = 0, and NaN there).

    Args:
        factual_logits: f, (B, C) of the teacher as it was trained, biased by the training set's priors.
        counterfactual_logits: c, (B, C) of the same teacher, balanced.
        labels: y, (B,) int64.
        gamma: γ > 0.
        eps: ε ≥ 0.

    Returns:
        (w_f, w_c), each (B,), in the accumulation dtype.
    """
    dtype = accumulation_dtype(factual_logits, counterfactual_logits)
    largest = torch.finfo(dtype).max / 4  # of a class that is excluded: inf / inf would be NaN
    factual, counterfactual = (
        torch.nn.functional.cross_entropy(logits.to(dtype), labels, reduction="none").pow(gamma).clamp(max=largest)
        for logits in (factual_logits, counterfactual_logits)
    )
    share = (counterfactual / (counterfactual + factual + eps)).where(counterfactual != 0, 0.0)
    return 1 - share, share
