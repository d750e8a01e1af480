"""The memory of a rule for each parameter, in the optimizer's own `state`."""

from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor

from prograd_fast.ops.common import Scope
from prograd_fast.ops.projection import n_units
from prograd_fast.optim.rules import Rule
from prograd_fast.optim.shards import layout_of, like, part_of

State = MutableMapping[Tensor, dict[str, Any]]


class RuleMemory:
    """The memory of a rule, in `state[p]` beside what the update keeps there, so that every checkpoint has it.

    An update initialises `state[p]` where it finds it empty. So the memory waits here until there has been one.

    Args:
        rule: whose memory it is; None keeps nothing.
        scope: of its units.
    """

    def __init__(self, rule: Rule | None, scope: Scope) -> None:
        self._rule = rule
        self._scope: Scope = scope
        self._names = () if rule is None else rule.unit_memory + rule.parameter_memory
        self._waiting: dict[Tensor, dict[str, Any]] = {}
        self._shared: dict[str, Tensor] = {}  # with scope "global", of all parameters; each has a copy for checkpoints

    def of(self, p: Tensor, state: State) -> dict[str, Any]:
        """The memory for a parameter, to be read and written; RuntimeError if it is that of another shape."""
        kept = state.get(p) or self._waiting.setdefault(p, {})
        for name in self._names:
            units = (1 if self._scope == "global" else n_units(p, self._scope),)
            shape = units if self._rule is not None and name in self._rule.unit_memory else p.shape
            if name not in kept and name in self._shared:
                kept[name] = self._shared[name].to(p.device, copy=True)
            elif name not in kept:
                if shape is units:
                    kept[name] = torch.zeros(shape, dtype=torch.promote_types(p.dtype, torch.float32), device=p.device)
                else:
                    kept[name] = like(p, part_of(p).new_zeros(part_of(p).shape))
            elif kept[name].shape != shape or (shape is not units and layout_of(kept[name]) != layout_of(p)):
                raise RuntimeError(
                    f"{name}: expected shape {tuple(shape)} for a parameter of shape {tuple(p.shape)}, got "
                    f"{tuple(kept[name].shape)} of {type(kept[name]).__name__}. Load the state of the same parameters "
                    "and scope, or build a new optimizer after a parameter has changed."
                )
            elif kept[name].device != p.device:
                kept[name] = kept[name].to(p.device)
        return kept

    def units(self, params: Sequence[Tensor], every: Sequence[Tensor], state: State) -> dict[str, Tensor]:
        """The memory of each unit of `params`, (U,); with scope "global" that of all of `every`, (1,)."""
        if self._rule is None or not self._rule.unit_memory:
            return {}
        names, device = self._rule.unit_memory, params[0].device
        if self._scope != "global":
            kept = [self.of(p, state) for p in params]
            return {name: torch.cat([memory[name].to(device) for memory in kept]) for name in names}
        for name in names:
            known = [state[p][name] for p in every if name in state.get(p, {})]  # of a checkpoint
            if name not in self._shared and known:
                self._shared[name] = known[0]
        kept_by_first = self.of(params[0], state)
        return {name: self._shared.get(name, kept_by_first[name]).to(device) for name in names}

    def keep_units(
        self, params: Sequence[Tensor], every: Sequence[Tensor], state: State, values: Mapping[str, Tensor]
    ) -> None:
        """Take up the memory that `units` gave, changed."""
        for name, value in values.items():
            if self._scope == "global":
                self._shared.setdefault(name, value.detach().clone())
                _put(self._shared, name, value)
                for p in every:
                    _put(self.of(p, state), name, value)
                continue
            for p, part in zip(params, value.split([n_units(p, self._scope) for p in params]), strict=True):
                _put(self.of(p, state), name, part)

    def keep(self, kept: Sequence[dict[str, Any]], changed: Sequence[Mapping[str, Any]]) -> None:
        """Take up the memory of parameters, of which `Rule.prepare` has changed a copy."""
        for own, new in zip(kept, changed, strict=True):
            for name in self._rule.parameter_memory if self._rule is not None else ():
                _put(own, name, new[name])

    def settle(self, params: Sequence[Tensor], state: State) -> None:
        """Put the memory into `state`, after an update of these parameters."""
        if self._names:
            for p in params:
                if p in self._waiting:
                    state[p].update(self._waiting.pop(p))
                self.of(p, state)

    def forget_waiting(self) -> None:
        """Drop what no update has followed: another state has been loaded."""
        self._waiting.clear()
        self._shared.clear()


def _put(kept: dict[str, Any], name: str, value: Tensor) -> None:
    """Write a memory where the last one lies: a captured CUDA graph reads it there at its next replay."""
    held, value = part_of(kept[name]), value.detach()
    if held.shape == value.shape and held.dtype == value.dtype:
        held.copy_(value)
    else:
        kept[name] = like(kept[name], value.to(held.device, copy=True))
