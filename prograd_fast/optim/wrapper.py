"""ProGrad: the projection in front of any other torch.optim optimizer."""

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from prograd_fast.ops.common import Scope
from prograd_fast.optim.inner_step import run_unless_inf
from prograd_fast.optim.rules import Rule
from prograd_fast.optim.two_gradients import TwoGradients, check_lambda, keep_lambdas


class ProGrad(TwoGradients):
    """Any optimizer on the projected gradient: g = a - λ·min(0, ⟨a,b⟩)/‖b‖²·b goes where a would have gone.

    Parameter groups, state and `state_dict` are those of the wrapped optimizer, so that schedulers, checkpoints and
    `GradScaler` work on the wrapper as on the optimizer itself. The wrapped optimizer alone knows what its state must
    look like: a state that does not fit raises the wrapped optimizer's own error.

    Source: Zhu et al., Prompt-aligned Gradient for Prompt Tuning, arXiv:2205.14865.

    Args:
        optimizer: the optimizer that makes the update; stays reachable as `.optimizer`.
        lambda_: λ ≥ 0: 0 never projects, 1 removes the whole conflict (default: 1.0).
        scope: what is tested and projected as a whole: each "tensor" (default), each "row", or all ("global").
        rule: another rule than ProGrad's, from `prograd_fast.rules` (default: None, `rules.ProGrad(lambda_)`).

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
        self, optimizer: Optimizer, lambda_: float = 1.0, scope: Scope = "tensor", rule: Rule | None = None
    ) -> None:
        if not isinstance(optimizer, Optimizer) or isinstance(optimizer, TwoGradients | torch.optim.LBFGS):
            raise TypeError(
                f"optimizer: expected a torch.optim.Optimizer that steps without a closure and takes one gradient, got "
                f"{type(optimizer).__name__}."
            )
        self.optimizer = optimizer
        self._init_two_gradients(lambda_, scope, rule)
        Optimizer.__setstate__(self, {})  # the hooks of an optimizer, without groups of its own

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """The wrapped optimizer's."""
        return self.optimizer.param_groups

    @property
    def state(self) -> Any:  # type: ignore[override]
        """The wrapped optimizer's."""
        return self.optimizer.state

    @property
    def defaults(self) -> dict[str, Any]:  # type: ignore[override]
        """The wrapped optimizer's."""
        return self.optimizer.defaults

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the wrapped optimizer; `lambda_` may be given for it."""
        if "lambda_" in param_group:
            check_lambda(param_group["lambda_"])
        self.optimizer.add_param_group(param_group)
        self._projector.grow(self._parameters)

    def state_dict(self) -> dict[str, Any]:
        """The state of the wrapped optimizer."""
        return self._with_rule_state(self.optimizer.state_dict())

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state of the wrapped optimizer."""
        self._check_rule_state(state_dict)
        before = self.param_groups
        self.optimizer.load_state_dict(state_dict)
        keep_lambdas(before, self.param_groups)
        self._load_rule_state(state_dict)

    def __getstate__(self) -> dict[str, Any]:
        shared = ("defaults", "state", "param_groups")  # they travel with the wrapped optimizer
        own = {name: value for name, value in super().__getstate__().items() if name not in shared}
        return own | {"optimizer": self.optimizer}

    def _update(self, found_inf: Tensor | None) -> None:
        inner = self.optimizer
        run_unless_inf(inner, inner.step, getattr(inner, "_step_supports_amp_scaling", False), found_inf)
        for name in ("grad_scale", "found_inf"):  # GradScaler cleans up after itself on the wrapper only
            inner.__dict__.pop(name, None)
