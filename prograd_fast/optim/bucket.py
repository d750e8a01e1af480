"""Buckets: parameters of one group, device and dtype with both their gradients, the arguments of one operator call."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from prograd_fast.optim.shards import parts_of


@dataclass(slots=True)
class Bucket:
    """Parameters that one call of an operator can take, with both their gradients.

    Attributes:
        group: the parameter group that they are in.
        lambda_: λ of the group.
        noise_floor: below which a general gradient is rounding.
        params: those that one of the losses reaches.
        task: their task gradients, as the rule wants them; zeros where there is none. Of parameters that ranks have
            parts of, those of this rank's part; so are all gradients here.
        general: their general gradients, as the rule wants them; zeros where there is none.
        came_task, came_general: both as they came, where the rule wants others; else empty.
    """

    group: dict[str, Any]
    lambda_: float
    noise_floor: float
    params: list[Tensor] = field(default_factory=list)
    task: list[Tensor] = field(default_factory=list)
    general: list[Tensor] = field(default_factory=list)
    came_task: list[Tensor] = field(default_factory=list)
    came_general: list[Tensor] = field(default_factory=list)

    @property
    def parts(self) -> list[Tensor]:
        """The parts of the parameters that this rank has: all, unless they are sharded."""
        return parts_of(self.params)

    @property
    def differentiable(self) -> bool:
        """Return whether the result must have a graph; then the formulas are used, not the operators."""
        return torch.is_grad_enabled() and any(gradient.requires_grad for gradient in (*self.task, *self.general))
