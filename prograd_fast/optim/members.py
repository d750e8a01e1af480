"""Parameters with their group and both gradients, between autograd and `.grad`."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from prograd_fast.optim.sums import Gradients

Member = tuple[Tensor, dict[str, Any], Tensor, Tensor]  # a parameter, its group, its task and general gradient


def members_of(groups: dict[Tensor, dict[str, Any]], a: Gradients, b: Gradients) -> list[Member]:
    """The parameters that one of the losses reaches; a gradient that is missing counts as zeros."""
    members = []
    for (p, group), task, general in zip(groups.items(), a, b, strict=True):
        if task is None and general is not None:
            task = torch.zeros_like(general)
        elif general is None and task is not None:
            general = torch.zeros_like(task)
        if task is not None and general is not None:
            members.append((p, group, task, general))
    return members


def is_dense(grad: Tensor | None) -> bool:
    """Whether a gradient is there, and not of the kinds that torch.optim has ways of its own with."""
    return grad is not None and grad.layout == torch.strided and grad.is_floating_point()


def add_to_grad(p: Tensor, g: Tensor) -> None:
    """Add to `.grad`: in place as autograd does, or to a new tensor with a graph."""
    if p.grad is None:
        p.grad = g
    elif torch.is_grad_enabled() or (0 in p.grad.stride() and p.grad.numel() > 1):  # expanded memory takes no sum
        p.grad = p.grad + g
    else:
        p.grad.add_(g)


def drop_grads(params: Sequence[Tensor]) -> None:
    """Set `.grad` to None."""
    for p in params:
        p.grad = None
