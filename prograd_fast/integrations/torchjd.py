"""torchjd: ProGrad's rule as an aggregator of Jacobians, and as a weighting of their Gramians."""

import torch
from torch import Tensor
from torchjd.aggregation import GramianWeightedAggregator, Weighting

from prograd_fast.optim.rules import ProGrad


class ProGradWeighting(Weighting[Tensor]):
    """Weights (1, -λ·min(0, ⟨a,b⟩)/‖b‖²) of a task gradient a and a general gradient b, from their Gramian.

    For `torchjd.autogram`, which needs no Jacobian. Rounding is not told from knowledge here: there is no noise floor.

    Args:
        lambda_: λ ≥ 0: 0 never projects, 1 removes the whole conflict (default: 1.0).

    Raises:
        ValueError: λ is negative or not finite.
    """

    def __init__(self, lambda_: float = 1.0) -> None:
        super().__init__()
        self.rule = ProGrad(lambda_)

    def forward(self, gramian: Tensor, /) -> Tensor:
        """Weights (2,) of a Gramian (2, 2): ‖a‖², ⟨a,b⟩ and ‖b‖², in its dtype. ValueError for another shape."""
        if gramian.shape != (2, 2):
            raise ValueError(
                f"gramian: expected that of two losses, the task and the general one in this order, got shape "
                f"{tuple(gramian.shape)}. Sum up the losses of each kind."
            )
        entries = torch.stack([gramian[0, 0], gramian[0, 1], gramian[1, 1]])
        wide = torch.promote_types(entries.dtype, torch.float32)
        return self.rule(entries.to(wide)[None], {})[0].to(gramian.dtype)


class ProGradAggregator(GramianWeightedAggregator):
    """a - λ·min(0, ⟨a,b⟩)/‖b‖²·b of a Jacobian whose rows are the task gradient a and the general gradient b.

    torchjd puts the gradients of all parameters into one row, so that there is one test over all of them: it is
    `scope="global"` of this library's optimizers, whose default is one for each tensor.

    Source: Zhu et al., Prompt-aligned Gradient for Prompt Tuning, arXiv:2205.14865.

    Args:
        lambda_: λ ≥ 0: 0 never projects, 1 removes the whole conflict (default: 1.0).

    Raises:
        ValueError: λ is negative or not finite; or, at a call, there are not two rows.

    Example:
        >>> ProGradAggregator()(torch.tensor([[1.0, -1.0], [0.0, 1.0]]))
        tensor([1., 0.])
    """

    def __init__(self, lambda_: float = 1.0) -> None:
        super().__init__(ProGradWeighting(lambda_))
        self.lambda_ = lambda_

    def __repr__(self) -> str:
        return f"ProGradAggregator(lambda_={self.lambda_})"
