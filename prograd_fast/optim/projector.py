"""The conflict test and the projection of an optimizer's parameters, with their state from step to step."""

from typing import Any

import torch
from torch import Tensor

from prograd_fast.ops.common import SCOPES, Scope, accumulation_dtype
from prograd_fast.ops.projection import all_units, combine, n_units, prograd_coefficients, split_units
from prograd_fast.ops.projection import gram_formula as gram
from prograd_fast.optim.bucket import Bucket
from prograd_fast.optim.conflict import Conflict, ConflictLog
from prograd_fast.optim.rules import Rule

_operators = torch.ops.prograd_fast


class Projector:
    """Compares and combines the two gradients of all parameters, unit by unit.

    Args:
        scope: the unit, "tensor", "row" or "global".
        rule: how they are combined; None for ProGrad with each bucket's λ.
    """

    def __init__(self, scope: Scope, rule: Rule | None) -> None:
        self.scope: Scope = scope
        self.rule = rule
        self._log: ConflictLog | None = None
        self._unit_state: dict[str, Tensor] = {}  # what the rule keeps for each unit, and for each parameter
        self._parameter_states: dict[Tensor, dict[str, Tensor]] = {}

    def prepare(self, buckets: list[Bucket]) -> None:
        """Let the rule change the gradients before they are compared."""
        if self.rule is None:
            return
        task = [a for bucket in buckets for a in bucket.task]
        general = [b for bucket in buckets for b in bucket.general]
        states = [self._parameter_states.setdefault(p, {}) for bucket in buckets for p in bucket.params]
        prepared = [iter(gradients) for gradients in self.rule.prepare(task, general, states, self.scope)]
        for bucket in buckets:
            bucket.task, bucket.general = ([next(gradients) for _ in bucket.params] for gradients in prepared)

    def new_entries(self, buckets: list[Bucket], params: list[Tensor]) -> list[Tensor]:
        """Memory for the Gram entries of each bucket's units, (U, 3). `params` are all that the optimizer has."""
        log = self._conflict_log(params)
        if len(buckets) == 1 and log.keeps and self._all_in_order(buckets, params):
            a = buckets[0].task[0]
            row = log.row(accumulation_dtype(a))
            if row.device == a.device:
                return [row]
        return [self._empty_entries(bucket) for bucket in buckets]

    def _empty_entries(self, bucket: Bucket) -> Tensor:
        a = bucket.task[0]
        return a.new_empty(all_units(bucket.task, self.scope), 3, dtype=accumulation_dtype(a))

    def entries(self, buckets: list[Bucket]) -> list[Tensor]:
        """The Gram entries of each bucket's units; for "global" the same sums over all buckets."""
        entries = []
        for bucket in buckets:
            if bucket.differentiable:
                entries.append(gram(bucket.task, bucket.general, self.scope))
            else:
                entries.append(self._empty_entries(bucket))
                _operators.gram_out(bucket.task, bucket.general, SCOPES.index(self.scope), entries=entries[-1])
        if self.scope == "global" and len(entries) > 1:
            total = torch.cat([e.to(entries[0].device) for e in entries]).sum(0, keepdim=True)
            entries = [total.to(e) for e in entries]
        return entries

    def coefficients(self, buckets: list[Bucket], entries: list[Tensor], params: list[Tensor]) -> list[Tensor]:
        """(alpha, beta) for each bucket's units, (U, 2). `params` are all that the optimizer has."""
        if self.rule is None:
            return [prograd_coefficients(e, bucket.lambda_) for bucket, e in zip(buckets, entries, strict=True)]
        units = self._present_units(buckets, params)
        present = self._concatenated(entries)
        if units is None:
            coefficients = self.rule(present, self._unit_state)
        else:  # a rule sees the same units at each step, whichever have a gradient
            every = present.new_zeros(all_units(params, self.scope), 3).index_copy(0, units, present)
            coefficients = self.rule(every, self._unit_state)[units]
        if self.scope == "global":
            return [coefficients.to(e) for e in entries]
        parts = coefficients.split([len(e) for e in entries])
        return [c.to(e) for c, e in zip(parts, entries, strict=True)]

    def combine(self, bucket: Bucket, coefficients: Tensor) -> list[Tensor]:
        """The projected gradients, in memory of their own."""
        if bucket.differentiable:
            parts = split_units(coefficients, bucket.task, self.scope)
            pairs = zip(bucket.task, bucket.general, parts, strict=True)
            return [combine(a, b, c).to(a.dtype) for a, b, c in pairs]
        gradients = [torch.empty_like(a) for a in bucket.task]
        _operators.project_out(
            bucket.task, bucket.general, coefficients, bucket.lambda_, 0.0, SCOPES.index(self.scope),
            entries=self._empty_entries(bucket), projected=gradients,
        )  # fmt: skip
        return gradients

    # ---- state from step to step

    def count(self, buckets: list[Bucket], entries: list[Tensor], params: list[Tensor]) -> None:
        """Remember one step."""
        self._conflict_log(params).add(self._concatenated(entries), self._present_units(buckets, params))

    def conflict(self, params: list[Tensor]) -> Conflict:
        """The counts up to now."""
        return self._conflict_log(params).read()

    def grow(self, params: list[Tensor]) -> None:
        """Count the units of these parameters from now on, the known ones first."""
        if self._log is not None:
            self._log.grow(all_units(params, self.scope))
        for name, value in self._unit_state.items():  # new units begin as the first ones did, at zero
            new = value.new_zeros(all_units(params, self.scope) - len(value), *value.shape[1:])
            self._unit_state[name] = torch.cat([value, new])

    def rule_state(self, params: list[Tensor]) -> dict[str, Any]:
        """The rule's state, for a checkpoint; empty if it keeps none."""
        states = {i: self._parameter_states[p] for i, p in enumerate(params) if self._parameter_states.get(p)}
        return {"units": dict(self._unit_state), "parameters": states} if self._unit_state or states else {}

    def check_rule_state(self, state: dict[str, Any], params: list[Tensor]) -> None:
        """RuntimeError if what `rule_state` gave is that of other parameters."""
        units = all_units(params, self.scope)
        for name, value in state.get("units", {}).items():
            if len(value) != units:
                raise RuntimeError(
                    f"rule: {name}: expected {units} rows, one for each unit of the parameters, got {len(value)}. "
                    "Load the state of the same parameters and scope."
                )
        for i in state.get("parameters", {}):
            if not 0 <= i < len(params):
                raise RuntimeError(f"rule: expected the states of {len(params)} parameters, got one of parameter {i}.")

    def load_rule_state(self, state: dict[str, Any], params: list[Tensor]) -> None:
        """Take up what `rule_state` gave."""
        self._unit_state = {name: value.to(params[0].device) for name, value in state.get("units", {}).items()}
        self._parameter_states = {
            params[i]: {name: value.to(params[i].device) for name, value in values.items()}
            for i, values in state.get("parameters", {}).items()
        }

    # ---- units

    def _conflict_log(self, params: list[Tensor]) -> ConflictLog:
        if self._log is None:
            self._log = ConflictLog(all_units(params, self.scope), params[0].device)
        return self._log

    def _concatenated(self, entries: list[Tensor]) -> Tensor:
        if self.scope == "global" or len(entries) == 1:
            return entries[0]
        return torch.cat([e.to(entries[0].device) for e in entries])

    def _all_in_order(self, buckets: list[Bucket], params: list[Tensor]) -> bool:
        return self.scope == "global" or (len(buckets) == 1 and len(buckets[0].params) == len(params))

    def _present_units(self, buckets: list[Bucket], params: list[Tensor]) -> Tensor | None:
        """The indices of the buckets' units, in their order; None for all units in the order of the parameters."""
        if self._all_in_order(buckets, params):
            return None
        starts, start = {}, 0
        for p in params:
            starts[p] = start
            start += n_units(p, self.scope)
        ordered = [p for bucket in buckets for p in bucket.params]
        units = [torch.arange(starts[p], starts[p] + n_units(p, self.scope)) for p in ordered]
        return torch.cat(units).to(params[0].device)
