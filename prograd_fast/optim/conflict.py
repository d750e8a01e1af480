"""What the optimizers tell about the conflict between the two gradients, without waiting for the device."""

from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass
class Conflict:
    """How the task gradient a and the general gradient b got along, counted since construction.

    All tensors have shape (U,) and stay on the device of the first parameter: reading them into Python waits for the
    device, asking for them does not. U is the number of units that are tested each by itself, by the optimizer's
    `scope`: its tensors in the order of the parameter groups, all their rows, or 1.

    Attributes:
        cosine: cosine between a and b at the last step, float32; NaN where either is zero or non-finite.
        steps: projections in which the unit had a task gradient, int64.
        conflicts: steps at which ⟨a,b⟩ < 0 and the task gradient was projected, int64.
        non_finite: steps at which ‖b‖² or ⟨a,b⟩ was Inf or NaN; the task gradient went through unchanged, int64.
        absent: steps at which b was zero or missing; the task gradient went through unchanged, int64.
    """

    cosine: Tensor
    steps: Tensor
    conflicts: Tensor
    non_finite: Tensor
    absent: Tensor

    @classmethod
    def empty(cls, units: int, device: torch.device) -> "Conflict":
        """Counters at zero for `units` units."""
        counts = torch.zeros(4, units, dtype=torch.int64, device=device)
        return cls(torch.full((units,), torch.nan, device=device), *counts.unbind())

    @property
    def rate(self) -> Tensor:
        """Conflicts per step, (U,) float32; NaN before the first step."""
        return self.conflicts / self.steps

    def grown(self, units: int) -> "Conflict":
        """The same counters, with new ones behind them up to `units`."""
        new = Conflict.empty(units - self.steps.numel(), self.steps.device)
        return Conflict(*(torch.cat([getattr(self, f.name), getattr(new, f.name)]) for f in fields(self)))

    def record(self, entries: Tensor, coefficients: Tensor, units: Tensor | slice) -> None:
        """Count one step.

        Args:
            entries: (u, 3) Gram entries of the units that had a task gradient.
            coefficients: (u,) projection coefficients; negative means projected.
            units: which of the U units these are.
        """
        task_norm, dot, general_norm = entries.unbind(1)
        # two roots: the product of two squared norms would overflow first
        cosine = dot / task_norm.sqrt() / general_norm.sqrt()
        self.cosine[units] = cosine.where(cosine.isfinite(), torch.nan).to(self.cosine.dtype)
        self.steps[units] += 1
        self.conflicts[units] += coefficients < 0
        self.non_finite[units] += ~(general_norm.isfinite() & dot.isfinite())
        self.absent[units] += general_norm == 0
