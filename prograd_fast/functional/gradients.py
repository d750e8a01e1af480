"""Gradients and updates: Gram entries, projection, and the fused steps of AdamW and SGD."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from prograd_fast.backends import update_operator
from prograd_fast.checks import check_states
from prograd_fast.reference.losses import accumulation_dtype
from prograd_fast.reference.projection import (
    SCOPES,
    Scope,
    all_units,
    check_pairs,
    prograd_coefficients,
)


@torch.no_grad()
def gram(task: Sequence[Tensor], general: Sequence[Tensor | None], scope: Scope = "tensor") -> Tensor:
    """‖a‖², ⟨a,b⟩ and ‖b‖² for every unit of the conflict test, summed in an order that no thread count changes.

    Args:
        task: gradients a of the task loss, any shapes.
        general: gradients b of the general loss, each of its partner's shape and device; None counts as zero.
        scope: the unit that is tested as a whole: each "tensor" (default), each "row" (leading index), or "global".

    Returns:
        (U, 3), float32 or the widest dtype given, no graph. U is the number of tensors, of their rows, or 1.

    Raises:
        ValueError: the lists differ in length, a pair in shape or device, or `scope` is unknown.
        TypeError: a gradient is sparse, complex or not floating point.
    """
    b = _paired(task, general, scope)
    entries = _empty_entries(task, b, scope)
    if task:
        torch.ops.prograd_fast.gram_out(list(task), b, SCOPES.index(scope), entries=entries)
    return entries


@torch.no_grad()
def project(
    task: Sequence[Tensor], general: Sequence[Tensor | None], lambda_: float = 1.0, scope: Scope = "tensor"
) -> list[Tensor]:
    """Remove from the task gradient its part against the general gradient: a - λ · min(0, ⟨a,b⟩) / ‖b‖² · b.

    Args:
        task: gradients a, any shapes; read only.
        general: gradients b, each of its partner's shape and device; None, zero and non-finite ones leave a as it is.
        lambda_: λ ≥ 0 (default: 1.0, the whole conflict).
        scope: as in `gram`.

    Returns:
        The projected gradients in the dtypes and shapes of `task`, no graph.

    Raises:
        ValueError, TypeError: as `gram`.
    """
    b = _paired(task, general, scope)
    projected = [a.clone() for a in task]
    if task:
        coefficients = prograd_coefficients(gram(task, b, scope), lambda_)
        torch.ops.prograd_fast.project_(projected, b, coefficients, SCOPES.index(scope))
    return projected


@torch.no_grad()
def project_adamw_(
    params: Sequence[Tensor],
    task: Sequence[Tensor],
    general: Sequence[Tensor | None],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    step: int,
    *,
    lr: float | Tensor,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 1e-2,
    lambda_: float = 1.0,
    scope: Scope = "tensor",
    maximize: bool = False,
    max_exp_avg_sqs: Sequence[Tensor] | None = None,
) -> Tensor:
    """Project, then one AdamW step; in place, in one operator. Formula: `prograd_fast.reference.project_adamw_`.

    Args:
        params: θ, changed in place.
        task: a, one per parameter; read only.
        general: b or None, one per parameter; read only.
        exp_avgs: m, changed in place; the parameter's dtype or float32.
        exp_avg_sqs: v, changed in place.
        step: t, 1 at the first step.
        lr: learning rate, a number or a one-element tensor.
        betas: β1, β2 (default: (0.9, 0.999)).
        eps: added to the root (default: 1e-8).
        weight_decay: decoupled (default: 1e-2).
        lambda_: λ of the projection (default: 1.0).
        scope: unit of the projection (default: "tensor").
        maximize: ascend instead (default: False).
        max_exp_avg_sqs: v̂, changed in place; None for plain AdamW.

    Returns:
        The Gram entries, as `gram` returns them.

    Raises:
        ValueError, TypeError: as `gram`; or a state differs from its parameter in shape or device. Nothing is written.
    """
    b = _paired(task, general, scope)
    largest = [] if max_exp_avg_sqs is None else list(max_exp_avg_sqs)
    check_states(params, task=task, exp_avgs=exp_avgs, exp_avg_sqs=exp_avg_sqs, max_exp_avg_sqs=largest or params)
    entries = _empty_entries(task, b, scope)
    if params:
        steps = list(torch.full((len(params),), step - 1.0, device=params[0].device).unbind())
        update_operator("project_adamw_", params[0])(
            list(params), list(task), b, list(exp_avgs), list(exp_avg_sqs), largest, steps, entries, None,
            *_learning_rate(lr), *betas, eps, weight_decay, lambda_, SCOPES.index(scope), bool(largest), maximize,
            None, None,
        )  # fmt: skip
    return entries


@torch.no_grad()
def project_sgd_(
    params: Sequence[Tensor],
    task: Sequence[Tensor],
    general: Sequence[Tensor | None],
    momentum_buffers: Sequence[Tensor] | None = None,
    *,
    first: bool = False,
    lr: float | Tensor,
    momentum: float = 0.0,
    dampening: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    lambda_: float = 1.0,
    scope: Scope = "tensor",
    maximize: bool = False,
) -> Tensor:
    """Project, then one SGD step; in place, in one operator. Formula: `prograd_fast.reference.project_sgd_`.

    Args:
        params: θ, changed in place.
        task: a, one per parameter; read only.
        general: b or None, one per parameter; read only.
        momentum_buffers: m, changed in place; None without momentum.
        first: whether this is the first step, which starts m (default: False).
        lr: learning rate, a number or a one-element tensor.
        momentum: μ (default: 0).
        dampening: of the gradient that enters m (default: 0).
        weight_decay: added to the projected gradient (default: 0).
        nesterov: look ahead (default: False).
        lambda_: λ of the projection (default: 1.0).
        scope: unit of the projection (default: "tensor").
        maximize: ascend instead (default: False).

    Returns:
        The Gram entries, as `gram` returns them.

    Raises:
        ValueError, TypeError: as `gram`; or a state differs from its parameter in shape or device. Nothing is written.
    """
    b = _paired(task, general, scope)
    buffers = [] if momentum_buffers is None else list(momentum_buffers)
    check_states(params, task=task, momentum_buffers=buffers or params)
    entries = _empty_entries(task, b, scope)
    if params:
        update_operator("project_sgd_", params[0])(
            list(params), list(task), b, buffers, entries, None, *_learning_rate(lr), momentum, dampening,
            weight_decay, lambda_, SCOPES.index(scope), nesterov, maximize, first, None, None,
        )  # fmt: skip
    return entries


def _paired(task: Sequence[Tensor], general: Sequence[Tensor | None], scope: Any) -> list[Tensor]:
    """The general gradients, checked, with zeros for the missing ones."""
    if scope not in SCOPES:
        raise ValueError(f"scope: expected one of {', '.join(SCOPES)}, got {scope!r}.")
    check_pairs(task, general)
    return [torch.zeros_like(a) if b is None else b for a, b in zip(task, general, strict=True)]


def _empty_entries(task: Sequence[Tensor], general: Sequence[Tensor], scope: Scope) -> Tensor:
    units = all_units(task, scope)
    if not task:
        return torch.zeros(units, 3)
    return task[0].new_empty((units, 3), dtype=accumulation_dtype(*task, *general))


def _learning_rate(lr: float | Tensor) -> tuple[Tensor | None, float]:
    return (lr, 0.0) if isinstance(lr, Tensor) else (None, lr)
