"""The conflict test and the projection of an optimizer's parameters, with what is kept from one to the next."""

from collections.abc import Callable, Sequence
from functools import reduce
from operator import is_
from typing import Any

import torch
from torch import Tensor

from prograd_fast.ops.common import SCOPES, Scope, accumulation_dtype
from prograd_fast.ops.projection import (
    all_units,
    combine,
    floored,
    new_projected,
    prograd_coefficients,
    split_units,
)
from prograd_fast.ops.projection import gram_formula as gram
from prograd_fast.optim.bucket import Bucket
from prograd_fast.optim.checks import check_groups
from prograd_fast.optim.conflict import Conflict, ConflictLog
from prograd_fast.optim.members import Member
from prograd_fast.optim.memory import RuleMemory, State
from prograd_fast.optim.noise_floor import NOISE_FLOORS, check_noise_floor
from prograd_fast.optim.rules import Rule
from prograd_fast.optim.shards import Shards, any_sharded, like, part_of

Apply = Callable[[Bucket, Tensor, Tensor | None], None]
Adjust = Callable[[list[Tensor], list[Tensor]], list[Tensor]]


class Projector:
    """Compares and combines the two gradients of all parameters, unit by unit.

    Args:
        lambda_: λ of groups that have none of their own.
        scope: the unit, "tensor", "row" or "global".
        rule: how they are combined; None for ProGrad with each group's λ.
        noise_floor: ‖b‖/‖a‖ below which b is rounding; None for that of the gradients' dtype.

    Attributes:
        memory: what the rule keeps.
        projections: how many there were.
    """

    def __init__(self, lambda_: float, scope: Scope, rule: Rule | None, noise_floor: float | None) -> None:
        check_noise_floor(noise_floor)
        self.lambda_ = lambda_
        self.scope: Scope = scope
        self.rule = rule
        self.noise_floor = noise_floor
        self.memory = RuleMemory(rule, scope)
        self.projections = 0
        self._log = ConflictLog(scope)
        self._shards: Shards | None = None

    def add_lambda(self, group: dict[str, Any]) -> None:
        """Give a parameter group its λ, unless a rule has it; TypeError or ValueError for a wrong one."""
        check_groups([group], self.rule)
        if self.rule is None:
            group.setdefault("lambda_", self.lambda_)

    def buckets(
        self,
        members: Sequence[Member],
        state: State,
        scale: Tensor | None,
        key: Callable[[Tensor], Any] | None = None,
    ) -> list[Bucket]:
        """The parameters that one operator call each can take, with the gradients as the rule wants them.

        Args:
            members: in the order of the parameter groups.
            state: the optimizer's.
            scale: what both gradients are multiplied by, 0-d; None for 1.
            key: a value that all parameters of one call must share, besides group, device and dtype.
        """
        sharded = any_sharded(member[0] for member in members)
        if sharded:
            members = [(p, group, part_of(a), part_of(b)) for p, group, a, b in members]
        wanted: Sequence[Member] = members
        if self.rule is not None:
            params, groups, task, general = zip(*members, strict=True)
            kept = [self.memory.of(p, state) for p in params]
            changed = [{name: part_of(value) for name, value in memory.items()} for memory in kept]
            asked = {"parts": self._shards_of(params)} if sharded and self.rule.prepares else {}
            prepared = self.rule.prepare(task, general, changed, self.scope, scale, **asked)
            wanted = list(zip(params, groups, *prepared, strict=True))
            self.memory.keep(kept, changed)
        buckets: dict[Any, Bucket] = {}
        for i, (p, group, a, b) in enumerate(wanted):
            kind = (id(group), a.device, a.dtype, None if key is None else key(p))
            bucket = buckets.get(kind)
            if bucket is None:
                floor = NOISE_FLOORS.get(a.dtype, 0.0) if self.noise_floor is None else self.noise_floor
                bucket = buckets[kind] = Bucket(group, group.get("lambda_", self.lambda_), floor)
            bucket.params.append(p)
            bucket.task.append(a)
            bucket.general.append(b)
            if self.rule is not None and self.rule.prepares:
                bucket.came_task.append(members[i][2])
                bucket.came_general.append(members[i][3])
        if self.scope == "global":
            highest = max(bucket.noise_floor for bucket in buckets.values())
            for bucket in buckets.values():
                bucket.noise_floor = highest
        return list(buckets.values())

    def run(
        self,
        buckets: list[Bucket],
        every: Sequence[Tensor],
        state: State,
        apply: Apply,
        adjust: Adjust | None = None,
    ) -> None:
        """Compare the gradients and call `apply(bucket, entries, coefficients)` once for each bucket.

        Args:
            buckets: of all gradients.
            every: all parameters of the optimizer.
            state: the optimizer's.
            apply: an operator that combines by `coefficients`, (U, 2); or by ProGrad's if they are None, and then
                writes the Gram entries, (U, 3). U counts the units that this rank has parts of.
            adjust: takes the entries and the coefficients of all buckets, gives other coefficients.
        """
        if not torch.compiler.is_compiling():
            self.projections += 1
        alone = self.rule is None and adjust is None and len(buckets) == 1
        if alone and not buckets[0].differentiable and not any_sharded(buckets[0].params):
            (bucket,) = buckets
            self._log.expect(bucket.params, every, bucket.noise_floor)
            entries = self._log.row(bucket.task[0])
            if entries is None:
                entries = self._empty_entries(bucket.task)
            apply(bucket, entries, None)
            self._log.add(entries)
            return
        params = [p for bucket in buckets for p in bucket.params]
        shards = self._shards_of(params) if any_sharded(params) else None
        entries_of = came = self._entries([(bucket.task, bucket.general) for bucket in buckets], buckets, shards)
        if self.rule is not None and self.rule.prepares:
            came = self._entries([(bucket.came_task, bucket.came_general) for bucket in buckets], buckets, shards)
        counted = [floored(entries, bucket.noise_floor) for entries, bucket in zip(came, buckets, strict=True)]
        usable = counted
        if came is not entries_of:  # whether there is a general gradient is told by the one that came
            usable = [torch.where(c[:, 2:] == 0, c, e) for c, e in zip(counted, entries_of, strict=True)]
        coefficients = self._coefficients(buckets, params, every, state, usable)
        if adjust is not None:
            coefficients = adjust(came, coefficients)
        if shards is not None and self.scope != "global":
            own = shards.of_parts(self._joined(coefficients))
            parts = own.split([all_units(bucket.task, self.scope) for bucket in buckets])
            coefficients = [part.to(c) for part, c in zip(parts, coefficients, strict=True)]
            entries_of = [self._empty_entries(bucket.task) for bucket in buckets]  # operators want room for theirs
        for bucket, entries, c in zip(buckets, entries_of, coefficients, strict=True):
            apply(bucket, entries, c)
        self._log.expect(params, every, 0.0)
        self._log.add(self._joined(counted))

    def project(
        self, buckets: list[Bucket], every: Sequence[Tensor], state: State, adjust: Adjust | None
    ) -> list[tuple[Tensor, Tensor]]:
        """Each parameter with its projected gradient, in memory of its own."""
        pairs: list[tuple[Tensor, Tensor]] = []

        def apply(bucket: Bucket, entries: Tensor, coefficients: Tensor | None) -> None:
            if bucket.differentiable and coefficients is not None:
                parts = split_units(coefficients, bucket.task, self.scope)
                both = zip(bucket.task, bucket.general, parts, strict=True)
                projected = [combine(a, b, c).to(a.dtype) for a, b, c in both]
            else:
                projected = new_projected(
                    bucket.parts,
                    bucket.task,
                    bucket.general,
                    coefficients,
                    bucket.lambda_,
                    bucket.noise_floor,
                    SCOPES.index(self.scope),
                    entries,
                )
            if any_sharded(bucket.params):
                projected = [like(p, g) for p, g in zip(bucket.params, projected, strict=True)]
            pairs.extend(zip(bucket.params, projected, strict=True))

        self.run(buckets, every, state, apply, adjust)
        return pairs

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_shards": None}

    def conflict(self, every: Sequence[Tensor]) -> Conflict:
        """The counts of these parameters up to now."""
        return self._log.snapshot(every)

    def cosine(self, every: Sequence[Tensor]) -> Tensor:
        """The cosine of `conflict`, by fewer kernels."""
        return self._log.cosine(every)

    def _empty_entries(self, task: list[Tensor], scope: Scope | None = None) -> Tensor:
        return task[0].new_empty(all_units(task, scope or self.scope), 3, dtype=accumulation_dtype(task[0]))

    def _entries(
        self, gradients: Sequence[tuple[list[Tensor], list[Tensor]]], buckets: list[Bucket], shards: Shards | None
    ) -> list[Tensor]:
        """The Gram entries of the units of each bucket, from its task and general gradients."""
        scope = self.scope if shards is None else shards.scope
        found = []
        for (task, general), bucket in zip(gradients, buckets, strict=True):
            if bucket.differentiable:
                found.append(gram(task, general, scope))
                continue
            entries = self._empty_entries(task, scope)
            torch.ops.prograd_fast.gram_out(task, general, SCOPES.index(scope), entries=entries)
            found.append(entries)
        return self._shared(found) if shards is None else self._sums(found, buckets, shards)

    def _sums(self, entries: list[Tensor], buckets: list[Bucket], shards: Shards) -> list[Tensor]:
        """The entries of the whole parameters of each bucket, from those of this rank's parts."""
        wide = reduce(torch.promote_types, (e.dtype for e in entries))
        sums = shards.sums(torch.cat([e.to(entries[0].device, wide) for e in entries]))
        if self.scope == "global":
            return [sums.to(e) for e in entries]
        sizes = [all_units(bucket.params, self.scope) for bucket in buckets]
        return [part.to(e) for part, e in zip(sums.split(sizes), entries, strict=True)]

    def _shards_of(self, params: Sequence[Tensor]) -> Shards:
        """The units of some parameters, known from the last time if they are the same."""
        known = self._shards
        if known is None or len(params) != len(known.params) or not all(map(is_, params, known.params)):
            known = self._shards = Shards(params, self.scope)
        return known

    def _shared(self, entries: list[Tensor]) -> list[Tensor]:
        """For "global" the same sums in all buckets, else the entries as they are."""
        if self.scope != "global" or len(entries) == 1:
            return entries
        total = torch.cat([e.to(entries[0].device) for e in entries]).sum(0, keepdim=True)
        return [total.to(e) for e in entries]

    def _coefficients(
        self,
        buckets: list[Bucket],
        params: list[Tensor],
        every: Sequence[Tensor],
        state: State,
        entries: list[Tensor],
    ) -> list[Tensor]:
        """(alpha, beta) for each bucket's units, (U, 2)."""
        if self.rule is None:
            return [prograd_coefficients(e, bucket.lambda_) for bucket, e in zip(buckets, entries, strict=True)]
        memory = self.memory.units(params, every, state)
        coefficients = self.rule(self._joined(entries), memory)
        self.memory.keep_units(params, every, state, memory)
        if self.scope == "global":
            return [coefficients.to(e) for e in entries]
        parts = coefficients.split([len(e) for e in entries])
        return [c.to(e) for c, e in zip(parts, entries, strict=True)]

    def _joined(self, entries: list[Tensor]) -> Tensor:
        if self.scope == "global" or len(entries) == 1:
            return entries[0]
        return torch.cat([e.to(entries[0].device) for e in entries])


def nan_where_lost(entries: list[Tensor], coefficients: list[Tensor]) -> list[Tensor]:
    """NaN for the units whose general gradient is not finite, so that a GradScaler sees it in `.grad`."""
    return [
        torch.where(e[:, 1:].isfinite().all(1, keepdim=True), c, torch.nan)
        for e, c in zip(entries, coefficients, strict=True)
    ]
