"""Counts of the conflicts between the two gradients, kept without waiting for the device."""

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from prograd_fast.ops.projection import conflict_coefficients


@dataclass
class Conflict:
    """Conflicts between the task gradient a and the general gradient b, counted since construction.

    All tensors have shape (U,) and stay on the device of the first parameter: reading them into Python waits for the
    device, asking for them does not. U is the number of units that are tested each by itself, by the optimizer's
    `scope`: its tensors in the order of the parameter groups, all their rows, or 1.

    Attributes:
        cosine: cosine between a and b at the last step, float32; NaN where either is zero or non-finite.
        steps: projections in which the unit had a task gradient, int64.
        conflicts: steps at which ⟨a,b⟩ < 0 and b was of use, so that the task gradient was projected, int64.
        non_finite: steps at which ‖b‖² or ⟨a,b⟩ was Inf or NaN; the task gradient went through unchanged, int64.
        absent: steps at which b was zero, vanishing or missing; the task gradient went through unchanged, int64.
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

    def count(self, entries: Tensor, units: Tensor | slice) -> None:
        """Count some steps.

        Args:
            entries: (S, u, 3) Gram entries of S steps, for the u units that had a task gradient.
            units: which of the U units these are.
        """
        task_norm, dot, general_norm = entries.detach().unbind(2)
        # two roots: the product of two squared norms would overflow first
        cosine = (dot[-1] / task_norm[-1].sqrt() / general_norm[-1].sqrt()).to(self.cosine.dtype)
        self.cosine[units] = cosine.where(cosine.isfinite(), torch.nan)
        self.steps[units] += len(entries)
        self.conflicts[units] += (conflict_coefficients(entries) < 0).sum(0)
        self.non_finite[units] += (~(general_norm.isfinite() & dot.isfinite())).sum(0)
        self.absent[units] += (general_norm < torch.finfo(general_norm.dtype).tiny).sum(0)


class ConflictLog:
    """Gram entries of the last steps. They are counted on request, since counting takes longer than a small step."""

    _MOST_STEPS, _MOST_UNITS = 1024, 2**16  # of all steps, kept before they are counted anyway: 0.8 MB of float32

    def __init__(self, units: int, device: torch.device) -> None:
        self._counted = Conflict.empty(units, device)
        self._rows: tuple[Tensor, ...] = ()  # of one memory, each for one step, reused when all are full
        self._full = 0

    @property
    def keeps(self) -> bool:
        """Return whether steps are kept; a compiled or captured step counts at once, to be the same at each call."""
        return not (self._capturing or torch.compiler.is_compiling())

    @property
    def _capturing(self) -> bool:
        return self._counted.steps.is_cuda and torch.cuda.is_current_stream_capturing()

    def row(self, dtype: torch.dtype) -> Tensor:
        """Memory for the next step's entries of all units, (U, 3), at a multiple of 16 bytes."""
        if not self._rows or self._rows[0].dtype != dtype:
            self.read()
            units = self._counted.steps.numel()
            steps = max(1, min(self._MOST_STEPS, self._MOST_UNITS // max(1, units)))
            rows = torch.empty(steps, -(-units // 4) * 4, 3, dtype=dtype, device=self._counted.steps.device)
            self._rows = rows[:, :units].unbind()
        return self._rows[self._full]

    def add(self, entries: Tensor, units: Tensor | None) -> None:
        """Remember one step.

        Args:
            entries: (u, 3) Gram entries; those of all units may lie where `row` said.
            units: which units had a task gradient, (u,) int64; None for all.
        """
        if units is not None or not self.keeps:
            # a captured graph that called `read` would count the rows of now at each replay
            counted = self._counted if self._capturing else self.read()
            counted.count(entries.unsqueeze(0), slice(None) if units is None else units)
            return
        row = self.row(entries.dtype)
        if entries is not row:
            row.copy_(entries.detach())
        self._full += 1
        if self._full == len(self._rows):
            self.read()

    def read(self) -> Conflict:
        """The counts up to now."""
        if self._full:
            self._counted.count(torch.stack(self._rows[: self._full]), slice(None))
            self._full = 0
        return self._counted

    def grow(self, units: int) -> None:
        """Count `units` units from now on, the known ones first."""
        self._counted = self.read().grown(units)
        self._rows = ()

    def __getstate__(self) -> dict[str, Conflict]:
        return {"_counted": self.read()}

    def __setstate__(self, state: dict[str, Conflict]) -> None:
        self._counted, self._rows, self._full = state["_counted"], (), 0
