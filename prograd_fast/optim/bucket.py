"""Buckets: parameters of one group, device and dtype with both their gradients, the arguments of one operator call."""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass
class Bucket:
    """Parameters that one call of an operator can take, with both their gradients.

    Attributes:
        lambda_: λ of their parameter group.
        group: the parameter group that they are in.
        params: those that have a task gradient.
        task: their task gradients, as the rule wants them.
        general: their general gradients, as the rule wants them; zeros where there is none.
    """

    lambda_: float
    group: dict[str, Any]
    params: list[Tensor] = field(default_factory=list)
    task: list[Tensor] = field(default_factory=list)
    general: list[Tensor] = field(default_factory=list)

    @property
    def differentiable(self) -> bool:
        """Return whether the gradients have a graph themselves; then the formulas are used, not the operators."""
        return any(a.requires_grad for a in self.task)
