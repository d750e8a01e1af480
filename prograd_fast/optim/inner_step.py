"""Helpers of a step: run torch.optim's step within its own, and pass the learning rate on."""

from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


def unhooked(optimizer: Optimizer, step: Callable[..., Any]) -> Callable[[], Any]:
    """`step` bound to `optimizer`, without the wrapper that runs the hooks.

    torch.optim wraps the `step` of each class of which an optimizer was ever made, and the wrapper runs the hooks of
    the optimizer it is called on. Ours has run them already when it calls its parent's step.
    """
    while getattr(step, "hooked", False):
        step = step.__wrapped__  # type: ignore[attr-defined]
    return MethodType(step, optimizer)


def run_unless_inf(optimizer: Optimizer, step: Callable[[], Any], skips_itself: bool, found_inf: Tensor | None) -> None:
    """Run a step on gradients that are unscaled already.

    Args:
        optimizer: whose `grad_scale` and `found_inf` the step reads.
        step: its step.
        skips_itself: whether the step honours `found_inf` on the device, as the fused ones do. For the others one value
            is read back to the host, as GradScaler itself does.
        found_inf: 0-d, above 0 to skip; None without a GradScaler.
    """
    if found_inf is None:
        step()
    elif skips_itself:
        optimizer.grad_scale, optimizer.found_inf = None, found_inf  # type: ignore[attr-defined]
        step()
    elif not found_inf.item():
        optimizer.grad_scale = optimizer.found_inf = None  # type: ignore[attr-defined]
        step()


def learning_rate(lr: float | Tensor) -> tuple[Tensor | None, float]:
    """`lr_tensor` and `lr` of the operators, of which one counts.

    A number becomes a tensor where torch.compile looks on: it would compile anew for each value of a schedule.
    """
    if isinstance(lr, Tensor):
        return lr, 0.0
    if torch.compiler.is_compiling():
        return torch.full((), lr, dtype=torch.float64), 0.0
    return None, lr
