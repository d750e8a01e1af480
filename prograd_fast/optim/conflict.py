"""Counts of the conflicts between the two gradients, kept without waiting for the device."""

from collections.abc import Sequence
from operator import is_
from typing import Any, NamedTuple

import torch
from torch import Tensor

from prograd_fast.ops.common import Scope, accumulation_dtype
from prograd_fast.ops.projection import n_units

_ALL = "all parameters"  # the owner of the counters with scope "global"


class Conflict(NamedTuple):
    """Conflicts between the task gradient a and the general gradient b, counted since construction.

    All tensors have shape (U,) and stay on the device of the first parameter: reading them into Python waits for the
    device, asking for them does not. U is the number of units that are tested each by itself, by the optimizer's
    `scope`: its tensors in the order of the parameter groups, all their rows, or 1.

    Attributes:
        cosine: cosine between a and b at the last projection, float32; NaN where either is zero, non-finite or missing,
            or b is below the noise floor.
        steps: projections in which one of the losses reached the unit, int64.
        conflicts: projections in which ⟨a,b⟩ < 0 and b was of use, so that something was taken from a, int64.
        non_finite: projections in which ‖a‖², ⟨a,b⟩ or ‖b‖² was Inf or NaN; b was left out, int64.
        absent: projections in which b was zero, vanishing, missing or below the noise floor; b was left out, int64.
    """

    cosine: Tensor
    steps: Tensor
    conflicts: Tensor
    non_finite: Tensor
    absent: Tensor

    @property
    def rate(self) -> Tensor:
        """Conflicts per projection, (U,) float32; NaN before the first."""
        return self.conflicts / self.steps


class _Counters(NamedTuple):
    """The tensors of a `Conflict` as they are kept: its cosine (U,), and its four counts in one tensor, (4, U)."""

    cosine: Tensor
    counts: Tensor

    @classmethod
    def empty(cls, units: int, device: torch.device) -> "_Counters":
        """At zero for `units` units."""
        counts = torch.zeros(4, units, dtype=torch.int64, device=device)
        return cls(torch.full((units,), torch.nan, device=device), counts)

    @property
    def units(self) -> int:
        """How many units are counted."""
        return self.cosine.numel()

    def add(self, entries: Tensor, noise_floor: float) -> None:
        """Count some projections, in as few kernels as it takes: a captured step counts at every replay.

        Args:
            entries: (S, U, 3) Gram entries of S projections.
            noise_floor: below which b is absent.
        """
        entries = entries.detach()
        non_finite = (entries - entries).any(2)  # NaN, which is true, in the place of Inf and NaN
        task_norm, dot, general_norm = entries.unbind(2)
        general_norm = _above(noise_floor, task_norm, general_norm, non_finite)
        vanishing = general_norm < torch.finfo(general_norm.dtype).tiny
        # see `conflict_coefficients`: a quotient that is not finite takes nothing
        taken = (dot / general_norm).nan_to_num_(0, 0, 0) < 0
        found = torch.stack([taken > (vanishing | non_finite), non_finite, vanishing > non_finite])
        self.counts[0].add_(len(entries))
        self.counts[1:].add_(found.sum(1))
        self.cosine.copy_(_cosine(task_norm[-1], dot[-1], general_norm[-1]))

    def split(self, sizes: Sequence[int]) -> list["_Counters"]:
        """The counters of parts of the units."""
        return [_Counters(*parts) for parts in zip(*(part.split(sizes, -1) for part in self), strict=True)]

    def to(self, device: torch.device) -> "_Counters":
        """The counters on a device."""
        return _Counters(*(part.to(device) for part in self))

    @staticmethod
    def joined(parts: Sequence["_Counters"]) -> "_Counters":
        """The counters of all units together, in memory of their own."""
        return _Counters(*(torch.cat(tensors, -1) for tensors in zip(*parts, strict=True)))


def _above(noise_floor: float, task_norm: Tensor, general_norm: Tensor, non_finite: Tensor) -> Tensor:
    """‖b‖², zero where b is below the noise floor; see `prograd_fast.ops.projection.floored`."""
    if noise_floor == 0:
        return general_norm
    below = general_norm <= (noise_floor * task_norm).mul_(noise_floor)
    return general_norm.masked_fill(below > non_finite, 0)


def _cosine(task_norm: Tensor, dot: Tensor, general_norm: Tensor) -> Tensor:
    # two roots: the product of two squared norms would overflow first
    cosine = (dot / task_norm.sqrt()).div_(general_norm.sqrt())
    return torch.add(cosine, cosine, alpha=0)  # ±Inf becomes NaN


class ConflictLog:
    """Gram entries of the last projections, counted on request, since counting takes longer than a small step.

    Counters belong to parameters, or with scope "global" to all of them. Those of the parameters that the last
    projection reached lie side by side in one `_Counters`, in its order.

    Args:
        scope: the unit that is tested.
    """

    _MOST_STEPS, _MOST_UNITS = 1024, 2**16  # of all projections, kept before they are counted: 0.8 MB of float32

    def __init__(self, scope: Scope) -> None:
        self._scope: Scope = scope
        self._owners: list[Any] = []  # of what is counted side by side
        self._sizes: list[int] = []  # their units
        self._noise_floor = 0.0
        self._counted = _Counters.empty(0, torch.device("cpu"))
        self._others: dict[Any, _Counters] = {}
        self._memory = torch.empty(0)  # (S, U, 3) for the entries of S projections, used again when it is full
        self._rows: tuple[Tensor, ...] = ()  # each for one projection
        self._full = 0

    @property
    def _capturing(self) -> bool:
        return self._counted.cosine.is_cuda and torch.cuda.is_current_stream_capturing()

    def expect(self, params: Sequence[Tensor], every: Sequence[Tensor], noise_floor: float) -> None:
        """Make ready for the entries of `params`, in this order; of other parameters only those of `every` count on."""
        owners, sizes = self._owners_of(params)
        same = self._counts(owners, sizes)
        if same and noise_floor == self._noise_floor:
            return
        self._count_rows()
        self._rows, self._noise_floor = (), noise_floor
        if not same:
            known = self._by_owner()
            self._counted = self._of(known, owners, sizes, params[0].device)
            self._owners, self._sizes = owners, sizes
            gone = known.keys() - set(every) | set(owners)
            self._others = {owner: counted for owner, counted in known.items() if owner not in gone}

    def row(self, a: Tensor) -> Tensor | None:
        """Memory for the entries of a projection of gradients like `a`, (U, 3), at a multiple of 16 bytes.

        None where entries are not kept: a compiled or captured projection counts at once, to be the same at each call.
        """
        if torch.compiler.is_compiling() or self._capturing or a.device != self._counted.cosine.device:
            return None
        return self._row(accumulation_dtype(a))

    def _row(self, dtype: torch.dtype) -> Tensor:
        if not self._rows or self._rows[0].dtype != dtype:
            self._count_rows()
            units = self._counted.units
            steps = max(1, min(self._MOST_STEPS, self._MOST_UNITS // max(1, units)))
            rows = torch.empty(steps, -(-units // 4) * 4, 3, dtype=dtype, device=self._counted.cosine.device)
            self._memory = rows[:, :units]
            self._rows = self._memory.unbind()
        return self._rows[self._full]

    def add(self, entries: Tensor) -> None:
        """Remember a projection of what was expected: entries (U, 3), which may lie where `row` said."""
        if not self._rows or entries is not self._rows[self._full]:
            if torch.compiler.is_compiling() or self._capturing:
                self._counted.add(entries.unsqueeze(0), self._noise_floor)
                return
            self._row(entries.dtype).copy_(entries.detach())
        self._full += 1
        if self._full == len(self._rows):
            self._count_rows()

    def snapshot(self, params: Sequence[Tensor]) -> Conflict:
        """The counters of these parameters up to now, in memory of their own."""
        if not self._capturing:  # a captured graph that counted the rows would count those of now at each replay
            self._count_rows()
        if params:
            cosine, counts = self._of(self._by_owner(), *self._owners_of(params), params[0].device)
        else:
            cosine, counts = _Counters.empty(0, torch.device("cpu"))
        return Conflict(cosine, *counts.unbind())

    def cosine(self, params: Sequence[Tensor]) -> Tensor:
        """The cosine of `snapshot`, in fewer kernels where the last projection reached all of them: nothing is counted.

        A captured graph that asks for it gives that of each replay.
        """
        owners, sizes = self._owners_of(params)
        if not self._full or self._capturing or not self._counts(owners, sizes):
            return self.snapshot(params).cosine
        entries = self._rows[self._full - 1]
        task_norm, dot, general_norm = entries.unbind(1)
        if self._noise_floor > 0:
            general_norm = _above(self._noise_floor, task_norm, general_norm, (entries - entries).any(1))
        return _cosine(task_norm, dot, general_norm).to(self._counted.cosine.dtype)

    def _counts(self, owners: list[Any], sizes: list[int]) -> bool:
        """Whether they are what is counted side by side."""
        same = len(owners) == len(self._owners) and all(map(is_, owners, self._owners))
        return same and sizes == self._sizes

    def _count_rows(self) -> None:
        if self._full:
            self._counted.add(self._memory[: self._full], self._noise_floor)
            self._full = 0

    def _owners_of(self, params: Sequence[Tensor]) -> tuple[list[Any], list[int]]:
        if self._scope == "global":
            return [_ALL], [1]
        return list(params), [1] * len(params) if self._scope == "tensor" else [n_units(p, self._scope) for p in params]

    def _by_owner(self) -> dict[Any, _Counters]:
        return self._others | dict(zip(self._owners, self._counted.split(self._sizes), strict=True))

    @staticmethod
    def _of(known: dict[Any, _Counters], owners: list[Any], sizes: list[int], device: torch.device) -> _Counters:
        """The counters of some owners; new ones where none are known, or those of another size."""
        parts = []
        for owner, size in zip(owners, sizes, strict=True):
            part = known.get(owner)
            fits = part is not None and part.units == size
            parts.append(part.to(device) if part is not None and fits else _Counters.empty(size, device))
        return _Counters.joined(parts)

    def __getstate__(self) -> dict[str, Any]:
        self._count_rows()
        return self.__dict__ | {"_memory": torch.empty(0), "_rows": ()}
