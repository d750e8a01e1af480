"""What a rule keeps for each parameter, in the optimizer's own `state`."""

from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor

from prograd_fast.ops.common import Scope
from prograd_fast.ops.projection import n_units
from prograd_fast.optim.rules import Rule

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

    def of(self, p: Tensor, state: State) -> dict[str, Any]:
        """The memory for a parameter, to be read and written; RuntimeError if it is that of another shape."""
        kept = state.get(p) or self._waiting.setdefault(p, {})
        for name in self._names:
            units = (1 if self._scope == "global" else n_units(p, self._scope),)
            shape = units if self._rule is not None and name in self._rule.unit_memory else p.shape
            if name not in kept:
                dtype = torch.promote_types(p.dtype, torch.float32) if shape is units else p.dtype
                kept[name] = torch.zeros(shape, dtype=dtype, device=p.device)
            elif kept[name].shape != shape:
                raise RuntimeError(
                    f"{name}: expected shape {tuple(shape)} for a parameter of shape {tuple(p.shape)}, got "
                    f"{tuple(kept[name].shape)}. Load the state of the same parameters and scope, or build a new "
                    "optimizer after a parameter has changed."
                )
            elif kept[name].device != p.device:
                kept[name] = kept[name].to(p.device)
        return kept

    def units(self, params: Sequence[Tensor], state: State) -> dict[str, Tensor]:
        """What the rule keeps for each unit of these parameters, (U,); with scope "global" for all together, (1,)."""
        if self._rule is None or not self._rule.unit_memory:
            return {}
        kept = [self.of(p, state) for p in params[: 1 if self._scope == "global" else None]]
        device = params[0].device
        return {name: torch.cat([memory[name].to(device) for memory in kept]) for name in self._rule.unit_memory}

    def keep_units(self, params: Sequence[Tensor], state: State, values: Mapping[str, Tensor]) -> None:
        """Take up what `units` gave, changed."""
        for name, value in values.items():
            if self._scope == "global":
                parts: Sequence[Tensor] = [value] * len(params)
            else:
                parts = value.split([n_units(p, self._scope) for p in params])
            for p, part in zip(params, parts, strict=True):
                self.of(p, state)[name] = part.detach().to(p.device, copy=True)

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
