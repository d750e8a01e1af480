"""Helpers of a step: run torch.optim's step within its own, and pass the learning rate on."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

_RUNS_HOOKS = Optimizer.profile_hook_step(lambda self: None).__code__


def unhooked(step: Callable[..., Any]) -> Callable[..., Any]:
    """The step of an optimizer class without the wrapper that runs the hooks.

    torch.optim wraps the `step` of each class of which an optimizer was ever made, and the wrapper runs the hooks of
    the optimizer it is called on. Ours has run them already when it calls its parent's step.
    """
    while step.__code__ is _RUNS_HOOKS:  # `step.hooked` says it too, but torch.compile sets it on others as well
        step = step.__wrapped__  # type: ignore[attr-defined]
    return step


def learning_rate(lr: float | Tensor, param: Tensor) -> tuple[Tensor | None, float]:
    """`lr_tensor` and `lr` of the operators, of which one counts.

    A tensor on a third device goes to the parameter's, as for torch.optim's fused updates. A number becomes a tensor
    where torch.compile looks on: it would compile anew for each value of a schedule.
    """
    if isinstance(lr, Tensor):
        return (lr if lr.is_cpu else lr.to(param.device, non_blocking=not param.is_cpu)), 0.0
    if torch.compiler.is_compiling():
        return torch.full((), lr, dtype=torch.float64), 0.0
    return None, lr
