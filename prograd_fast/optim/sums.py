"""The sums of gradients within an `accumulate()` block."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

Gradients = Sequence[Tensor | None]


class Sums:
    """Task and general gradients, added up by parameter until one `backward` outside of the block takes them.

    Attributes:
        depth: how many `accumulate()` blocks are open.
    """

    def __init__(self) -> None:
        self.depth = 0
        self._task: dict[Tensor, Tensor] = {}
        self._general: dict[Tensor, Tensor] = {}
        self._scaler: list[Any] = []  # of all that was added

    def __bool__(self) -> bool:
        return bool(self._scaler)

    def check_scaler(self, scaler: Any) -> None:
        """Raise ValueError if what is here was scaled by another scaler, or by none."""
        if self._scaler and self._scaler[0] is not scaler:
            raise ValueError(
                "scaler: expected the same in every backward of one sum, got another one or none than before. "
                "Give all of them the same scaler, or call zero_grad() to drop the sum."
            )

    def add(self, params: Sequence[Tensor], task: Gradients, general: Gradients, scaler: Any) -> None:
        """Add the gradients of one backward; None adds nothing."""
        for sums, gradients in ((self._task, task), (self._general, general)):
            for p, gradient in zip(params, gradients, strict=True):
                if gradient is not None:
                    sums[p] = added(sums.get(p), gradient)
        self._scaler[:] = [scaler]

    def with_these(self, params: Sequence[Tensor], task: Gradients, general: Gradients) -> tuple[Gradients, Gradients]:
        """The sums and these gradients together; the sums stay as they are."""
        if not self:
            return task, general
        task_totals, general_totals = (
            [
                sums.get(p) if g is None else g if p not in sums else sums[p] + g
                for p, g in zip(params, new, strict=True)
            ]
            for sums, new in ((self._task, task), (self._general, general))
        )
        return task_totals, general_totals

    def drop(self) -> None:
        """Forget the sums."""
        for container in (self._task, self._general, self._scaler):
            container.clear()


def added(known: Tensor | None, new: Tensor) -> Tensor:
    """A sum in memory of its own: in place from the second gradient on, unless it has a graph."""
    if known is None:
        return new.clone()  # autograd may return shared or expanded memory
    if known.requires_grad or new.requires_grad:
        return known + new
    with torch.no_grad():
        return known.add_(new)
