"""In which dtype an optimizer keeps its moments, and how it rounds parameters."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from prograd_fast.ops.common import STORAGE
from prograd_fast.ops.rounding import stochastic_rounding
from prograd_fast.optim.shards import part_number, part_of

_MOMENTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer")


@dataclass(frozen=True)
class Precision:
    """The choice of an optimizer.

    Attributes:
        state_dtype: of the moments; None for the parameter's, as torch.optim.
        seed: of the stochastic rounding of bfloat16 parameters; None for rounding to nearest.
    """

    state_dtype: torch.dtype | None = None
    seed: int | None = None

    def check(self, **implementations: bool | None) -> None:
        """Refuse what cannot be chosen, alone or beside one of torch.optim's implementations; names are as given."""
        if self.state_dtype is not None and self.state_dtype not in STORAGE:
            raise ValueError(
                f"state_dtype: expected torch.float32 or another of {', '.join(map(str, STORAGE))}, or None for the "
                f"parameter's, got {self.state_dtype!r}."
            )
        number = isinstance(self.seed, int) and not isinstance(self.seed, bool)
        if self.seed is not None and not (number and 0 <= self.seed < 1 << 63):
            raise ValueError(f"stochastic_rounding: expected a seed, 0 ... 2^63 - 1, or None, got {self.seed!r}.")
        chosen = [name for name, value in implementations.items() if value]
        if self.is_own and chosen:
            raise ValueError(
                f"{chosen[0]}: expected it to be left out beside state_dtype and stochastic_rounding, which "
                "torch.optim's implementations do not have."
            )

    @property
    def is_own(self) -> bool:
        """Whether it is another than torch.optim's."""
        return self.state_dtype is not None or self.seed is not None

    def zeros_like(self, p: Tensor) -> Tensor:
        """The first moment of a parameter."""
        return torch.zeros_like(p, dtype=self.state_dtype, memory_format=torch.preserve_format)

    # ---- rounding

    def unrounded(self, params: Sequence[Tensor]) -> list[Tensor]:
        """The tensors that an update writes: float32 copies of parameters that are rounded afterwards."""
        return [p.float() if self._rounds(p) else p for p in params]

    def round_into(
        self, params: Sequence[Tensor], unrounded: Sequence[Tensor], steps: Sequence[Tensor], every: Sequence[Tensor]
    ) -> None:
        """Round what an update has written.

        Args:
            params: written to; of sharded ones, this rank's part. Parts have random numbers of their own, so that the
                result depends on how a parameter is shared out.
            unrounded: from `unrounded`.
            steps: how many steps each of them has made, this one included.
            every: all parameters of the optimizer: the place there tells a parameter from others.
        """
        if self.seed is None:
            return
        places = {p: i for i, p in reversed([*enumerate(every)])}
        for p, x, step in zip(params, unrounded, steps, strict=True):
            if self._rounds(p):
                part_of(p).copy_(stochastic_rounding(x, self.seed, step, places[p] + len(every) * part_number(p)))

    def _rounds(self, p: Tensor) -> bool:
        return self.seed is not None and p.dtype == torch.bfloat16

    # ---- loading

    @contextmanager
    def loading(self, optimizer: Optimizer) -> Iterator[None]:
        """Meanwhile `load_state_dict` keeps moments in `state_dtype`: torch.optim rounds them to the parameter's."""
        if self.state_dtype is None:
            yield
            return
        given: list[dict[str, Any]] = []  # behind the hooks of others, which may have changed it
        hook = optimizer.register_load_state_dict_pre_hook(lambda _, state_dict: given.append(state_dict))
        try:
            yield
        finally:
            hook.remove()
        numbers = chain.from_iterable(group["params"] for group in given[-1]["param_groups"])
        params = chain.from_iterable(group["params"] for group in optimizer.param_groups)
        for number, p in zip(numbers, params, strict=True):
            state = given[-1]["state"].get(number, {})
            for name in _MOMENTS:
                if isinstance(state.get(name), Tensor):
                    optimizer.state[p][name] = state[name].detach().to(p.device, self.state_dtype, copy=True)
