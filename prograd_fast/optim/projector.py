"""The conflict test and the projection of an optimizer's parameters, with what is kept from one to the next."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from prograd_fast.ops.common import SCOPES, Scope, accumulation_dtype
from prograd_fast.ops.projection import all_units, combine, floored, prograd_coefficients, split_units
from prograd_fast.ops.projection import gram_formula as gram
from prograd_fast.ops.registry import operator_for
from prograd_fast.optim.bucket import Bucket
from prograd_fast.optim.checks import check_groups
from prograd_fast.optim.conflict import Conflict, ConflictLog
from prograd_fast.optim.memory import RuleMemory, State
from prograd_fast.optim.noise_floor import check_noise_floor, floor_of
from prograd_fast.optim.rules import Rule

Member = tuple[Tensor, dict[str, Any], Tensor, Tensor]  # a parameter, its group, its task and general gradient
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
    """

    def __init__(self, lambda_: float, scope: Scope, rule: Rule | None, noise_floor: float | None) -> None:
        check_noise_floor(noise_floor)
        self._lambda = lambda_
        self.scope: Scope = scope
        self.rule = rule
        self.noise_floor = noise_floor
        self.memory = RuleMemory(rule, scope)
        self._log = ConflictLog(scope)

    def add_lambda(self, group: dict[str, Any]) -> None:
        """Give a parameter group its λ, unless a rule has it; TypeError or ValueError for a wrong one."""
        check_groups([group], self.rule)
        if self.rule is None:
            group.setdefault("lambda_", self._lambda)

    def buckets(
        self, members: Sequence[Member], state: State, scale: Tensor | None, key: Callable[[Tensor], Any]
    ) -> list[Bucket]:
        """What one operator call each can take, with the gradients as the rule wants them.

        Args:
            members: in the order of the parameter groups.
            state: the optimizer's.
            scale: what both gradients are multiplied by, 0-d; None for 1.
            key: a value that all parameters of one call must share, besides group, device and dtype.
        """
        params = [member[0] for member in members]
        task: Sequence[Tensor] = [member[2] for member in members]
        general: Sequence[Tensor] = [member[3] for member in members]
        if self.rule is not None:
            kept = [self.memory.of(p, state) for p in params]
            task, general = self.rule.prepare(task, general, kept, self.scope, scale)
        shared_floor = floor_of({a.dtype for a in task}, self.noise_floor) if self.scope == "global" else None
        buckets: dict[Any, Bucket] = {}
        for (p, group, *_), a, b in zip(members, task, general, strict=True):
            kind = (id(group), a.device, a.dtype, key(p))
            bucket = buckets.get(kind)
            if bucket is None:
                floor = floor_of([a.dtype], self.noise_floor) if shared_floor is None else shared_floor
                bucket = buckets[kind] = Bucket(group, group.get("lambda_", self._lambda), floor)
            bucket.params.append(p)
            bucket.task.append(a)
            bucket.general.append(b)
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
                writes the Gram entries, (U, 3).
            adjust: takes the entries and the coefficients of all buckets, gives other coefficients.
        """
        if not buckets:
            return
        one = len(buckets) == 1
        params = [p for bucket in buckets for p in bucket.params]
        if self.rule is None and adjust is None and one and not buckets[0].differentiable:
            bucket = buckets[0]
            self._log.expect(params, every, bucket.noise_floor)
            entries = self._empty_entries(bucket, in_log=True)
            apply(bucket, entries, None)
            self._log.add(entries)
            return
        entries_of = self._entries(buckets)
        usable = [floored(entries, bucket.noise_floor) for entries, bucket in zip(entries_of, buckets, strict=True)]
        coefficients = self._coefficients(buckets, params, state, usable)
        if adjust is not None:
            coefficients = adjust(entries_of, coefficients)
        for bucket, entries, c in zip(buckets, entries_of, coefficients, strict=True):
            apply(bucket, entries, c)
        self._log.expect(params, every, 0.0)
        self._log.add(self._joined(usable))

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
                # laid out like the parameter, as autograd lays out .grad
                projected = [torch.empty_like(p, dtype=a.dtype) for p, a in zip(bucket.params, bucket.task, strict=True)]
                operator_for("project_out", bucket.params[0])(
                    bucket.task,
                    bucket.general,
                    coefficients,
                    bucket.lambda_,
                    bucket.noise_floor,
                    SCOPES.index(self.scope),
                    entries=entries,
                    projected=projected,
                )
            pairs.extend(zip(bucket.params, projected, strict=True))

        self.run(buckets, every, state, apply, adjust)
        return pairs

    def conflict(self, every: Sequence[Tensor]) -> Conflict:
        """The counts of these parameters up to now."""
        return self._log.snapshot(every)

    def _empty_entries(self, bucket: Bucket, in_log: bool = False) -> Tensor:
        a = bucket.task[0]
        if in_log and self._log.keeps:
            row = self._log.row(accumulation_dtype(a))
            if row.device == a.device:
                return row
        return a.new_empty(all_units(bucket.task, self.scope), 3, dtype=accumulation_dtype(a))

    def _entries(self, buckets: list[Bucket]) -> list[Tensor]:
        """The Gram entries of each bucket's units; for "global" the same sums over all buckets."""
        entries = []
        for bucket in buckets:
            if bucket.differentiable:
                entries.append(gram(bucket.task, bucket.general, self.scope))
            else:
                entries.append(self._empty_entries(bucket))
                torch.ops.prograd_fast.gram_out(
                    bucket.task, bucket.general, SCOPES.index(self.scope), entries=entries[-1]
                )
        if self.scope == "global" and len(entries) > 1:
            total = torch.cat([e.to(entries[0].device) for e in entries]).sum(0, keepdim=True)
            entries = [total.to(e) for e in entries]
        return entries

    def _coefficients(
        self, buckets: list[Bucket], params: list[Tensor], state: State, entries: list[Tensor]
    ) -> list[Tensor]:
        """(alpha, beta) for each bucket's units, (U, 2)."""
        if self.rule is None:
            return [prograd_coefficients(e, bucket.lambda_) for bucket, e in zip(buckets, entries, strict=True)]
        memory = self.memory.units(params, state)
        coefficients = self.rule(self._joined(entries), memory)
        self.memory.keep_units(params, state, memory)
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
