"""ProGrad: the projection in front of any other torch.optim optimizer."""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch.optim import Optimizer

from prograd_fast.ops.common import Scope
from prograd_fast.optim.rules import Rule
from prograd_fast.optim.two_gradients import TwoGradients, keep_lambdas


def _registers_with_the_wrapped(name: str) -> Callable[..., Any]:
    """A `register_..._hook`: the hook runs where the wrapped optimizer runs its own, and gets the wrapper."""

    def register(self: "ProGrad", hook: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return getattr(self.optimizer, name)(lambda _, *rest: hook(self, *rest), *args, **kwargs)

    register.__name__ = name
    register.__doc__ = getattr(Optimizer, name).__doc__
    return register


class ProGrad(TwoGradients):
    """Any optimizer on the projected gradient: g = a - λ·min(0, ⟨a,b⟩)/‖b‖²·b goes where a would have gone.

    Parameter groups, state, `state_dict` and hooks are those of the wrapped optimizer, so that schedulers, checkpoints
    and `GradScaler` work on the wrapper as on the optimizer itself. λ is put into its groups. The wrapped optimizer
    alone knows what its state must look like: a state that does not fit raises the wrapped optimizer's own error.

    Source: Zhu et al., Prompt-aligned Gradient for Prompt Tuning, arXiv:2205.14865.

    Args:
        optimizer: the optimizer that makes the update; stays reachable as `.optimizer`.
        lambda_: λ ≥ 0: 0 never projects, 1 removes the whole conflict (default: 1.0).
        scope: what is tested and projected as a whole: each "tensor" (default), each "row", or all ("global").
        rule: another rule than ProGrad's, from `prograd_fast.rules` (default: None, `rules.ProGrad(lambda_)`).
        noise_floor: a general gradient with ‖b‖ ≤ noise_floor·‖a‖ is rounding and left out (default: None,
            `prograd_fast.optim.NOISE_FLOORS` by the gradient's dtype; 0 for the authors' arithmetic).
        process_group: the ranks over which `backward` averages both gradients (default: None, one rank). Parameters
            under `fully_shard` and other DTensors need none where each rank has a part of all of them.

    Raises:
        TypeError: `optimizer` is not a torch.optim.Optimizer, or needs a closure that it calls several times.
        ValueError: `lambda_` is below 0, or `scope` is unknown.

    Example:
        >>> import torch, prograd_fast as pf
        >>> weight = torch.nn.Parameter(torch.zeros(3))
        >>> opt = pf.ProGrad(torch.optim.RMSprop([weight], lr=0.01), lambda_=0.8)
        >>> opt.backward((weight - 1).square().sum(), (weight + 1).square().sum())
        >>> opt.step()
    """

    def __init__(
        self,
        optimizer: Optimizer,
        lambda_: float = 1.0,
        scope: Scope = "tensor",
        rule: Rule | None = None,
        *,
        noise_floor: float | None = None,
        process_group: "dist.ProcessGroup | None" = None,
    ) -> None:
        if not isinstance(optimizer, Optimizer) or isinstance(optimizer, TwoGradients | torch.optim.LBFGS):
            raise TypeError(
                f"optimizer: expected a torch.optim.Optimizer that steps without a closure and takes one gradient, got "
                f"{type(optimizer).__name__}."
            )
        self.optimizer = optimizer
        self._init_two_gradients(lambda_, scope, rule, noise_floor, process_group)
        for group in self.param_groups:
            self._projector.add_lambda(group)
        Optimizer.__setstate__(self, {})  # what torch.optim keeps of its own, without groups

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The wrapped optimizer's."""
        return self.optimizer.param_groups

    @param_groups.setter
    def param_groups(self, value: Any) -> None:
        self.optimizer.param_groups = value

    @property
    def state(self) -> Any:
        """The wrapped optimizer's."""
        return self.optimizer.state

    @state.setter
    def state(self, value: Any) -> None:
        self.optimizer.state = value

    @property
    def defaults(self) -> dict[str, Any]:
        """The wrapped optimizer's."""
        return self.optimizer.defaults

    @defaults.setter
    def defaults(self, value: Any) -> None:
        self.optimizer.defaults = value

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the wrapped optimizer; `lambda_` may be given for it."""
        if isinstance(param_group, dict):  # else torch.optim complains
            self._projector.add_lambda(param_group)
        self.optimizer.add_param_group(param_group)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Set `.grad` to None or zero as the wrapped optimizer does, and drop the sum of an `accumulate()` block."""
        self._sums.drop()
        self.optimizer.zero_grad(set_to_none)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """As `TwoGradients.step`; the update and its hooks are those of the wrapped optimizer."""
        return super().step(closure)

    step.hooked = True  # type: ignore[attr-defined]  # torch.optim would run global hooks here, and again in the wrapped

    register_step_pre_hook = _registers_with_the_wrapped("register_step_pre_hook")
    register_step_post_hook = _registers_with_the_wrapped("register_step_post_hook")
    register_state_dict_pre_hook = _registers_with_the_wrapped("register_state_dict_pre_hook")
    register_state_dict_post_hook = _registers_with_the_wrapped("register_state_dict_post_hook")
    register_load_state_dict_pre_hook = _registers_with_the_wrapped("register_load_state_dict_pre_hook")
    register_load_state_dict_post_hook = _registers_with_the_wrapped("register_load_state_dict_post_hook")

    def state_dict(self) -> dict[str, Any]:
        """The state of the wrapped optimizer."""
        return self.optimizer.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state of the wrapped optimizer, of a wrapper or not."""
        before = self.param_groups
        self.optimizer.load_state_dict(state_dict)
        keep_lambdas(before, self.param_groups, self._projector.rule)
        self._projector.memory.forget_waiting()

    def __getstate__(self) -> dict[str, Any]:
        shared = ("defaults", "state", "param_groups")  # they travel with the wrapped optimizer
        own = {name: value for name, value in super().__getstate__().items() if name not in shared}
        return own | {"optimizer": self.optimizer}

    def _update(self) -> None:
        self.optimizer.step()
