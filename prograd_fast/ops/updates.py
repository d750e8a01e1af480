"""`project_adamw_` and `project_sgd_`: conflict test, projection and update of lists of parameters, in one operator."""

from math import inf
from typing import Any

import torch
from torch import Tensor

from prograd_fast.ops.checks import Arguments, check_gradients
from prograd_fast.ops.registry import define
from prograd_fast.reference import projection, updates
from prograd_fast.reference.losses import accumulation_dtype


def _check_update(call: dict[str, Any]) -> Arguments:
    """What both updates share."""
    arguments = check_gradients(call)
    arguments.same("params", call["params"], call["task"], written=True)
    arguments.number("lr_tensor", call["lr_tensor"], or_on_the_cpu=True)
    arguments.number("grad_scale", call["grad_scale"])
    arguments.number("found_inf", call["found_inf"])
    if not 0 <= call["lambda_"] < inf:
        raise ValueError(f"lambda_: expected a number of at least 0, got {call['lambda_']}.")
    return arguments


def _check_adamw(call: dict[str, Any]) -> None:
    arguments, params, steps = _check_update(call), call["params"], call["steps"]
    for name in ("exp_avgs", "exp_avg_sqs"):
        arguments.same(name, call[name], params, written=True)
    arguments.same("max_exp_avg_sqs", call["max_exp_avg_sqs"], params if call["amsgrad"] else [], written=True)
    if len(steps) != len(params):
        raise ValueError(f"steps: expected {len(params)} tensors, got {len(steps)}.")
    for i, step in enumerate(steps):
        if step is None:
            raise TypeError(f"steps[{i}]: expected a tensor, got None.")
        arguments.number(f"steps[{i}]", step)


def _check_sgd(call: dict[str, Any]) -> None:
    arguments, buffers = _check_update(call), call["momentum_buffers"]
    needed = call["momentum"] != 0 or bool(buffers)
    arguments.same("momentum_buffers", buffers, call["params"] if needed else [], written=True)


def _project_adamw_(
    params: list[Tensor],
    task: list[Tensor],
    general: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    max_exp_avg_sqs: list[Tensor],
    steps: list[Tensor],
    entries: Tensor,
    coefficients: Tensor | None,
    lr_tensor: Tensor | None,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    lambda_: float,
    scope: int,
    amsgrad: bool,
    maximize: bool,
    grad_scale: Tensor | None,
    found_inf: Tensor | None,
) -> None:
    gradients = _projected(task, general, entries, coefficients, lambda_, scope, grad_scale, maximize)
    for i, g in enumerate(gradients):
        _write(steps[i], steps[i] + 1, found_inf)
        updated = updates.adamw(
            params[i],
            g,
            exp_avgs[i],
            exp_avg_sqs[i],
            max_exp_avg_sqs[i] if amsgrad else None,
            steps[i],
            lr=lr if lr_tensor is None else lr_tensor.reshape(()),
            betas=(beta1, beta2),
            eps=eps,
            weight_decay=weight_decay,
        )
        states = (params, exp_avgs, exp_avg_sqs, max_exp_avg_sqs)
        for state, new in zip(states, updated, strict=True):
            if new is not None:
                _write(state[i], new, found_inf)


def _project_sgd_(
    params: list[Tensor],
    task: list[Tensor],
    general: list[Tensor],
    momentum_buffers: list[Tensor],
    entries: Tensor,
    coefficients: Tensor | None,
    lr_tensor: Tensor | None,
    lr: float,
    momentum: float,
    dampening: float,
    weight_decay: float,
    lambda_: float,
    scope: int,
    nesterov: bool,
    maximize: bool,
    first: bool,
    grad_scale: Tensor | None,
    found_inf: Tensor | None,
) -> None:
    gradients = _projected(task, general, entries, coefficients, lambda_, scope, grad_scale, maximize)
    for i, g in enumerate(gradients):
        param, buffer = updates.sgd(
            params[i],
            g,
            momentum_buffers[i] if momentum_buffers else None,
            lr=lr if lr_tensor is None else lr_tensor.reshape(()),
            momentum=momentum,
            dampening=dampening,
            weight_decay=weight_decay,
            nesterov=nesterov,
            first=first,
        )
        _write(params[i], param, found_inf)
        if buffer is not None:
            _write(momentum_buffers[i], buffer, found_inf)


def _projected(
    task: list[Tensor],
    general: list[Tensor],
    entries: Tensor,
    coefficients: Tensor | None,
    lambda_: float,
    scope: int,
    grad_scale: Tensor | None,
    maximize: bool,
) -> list[Tensor]:
    """The gradients that the update sees, in the accumulation dtype; writes `entries` unless it is told the result."""
    unit = projection.SCOPES[scope]
    if grad_scale is not None:
        task = [a.to(accumulation_dtype(a)) / grad_scale for a in task]
    if coefficients is None:
        entries.copy_(projection.gram(task, general, unit))
        coefficients = projection.prograd_coefficients(entries, lambda_)
    parts = projection.split_units(coefficients, task, unit)
    gradients = [projection.combine(a, b, c) for a, b, c in zip(task, general, parts, strict=True)]
    return [-g if maximize else g for g in gradients]


def _write(state: Tensor, new: Tensor, found_inf: Tensor | None) -> None:
    """Round once, unless a gradient overflowed; without asking the device."""
    state.copy_(new if found_inf is None else torch.where(found_inf > 0, state, new.to(state.dtype)))


define(
    "project_adamw_(Tensor(a!)[] params, Tensor[] task, Tensor[] general, Tensor(b!)[] exp_avgs, "
    "Tensor(c!)[] exp_avg_sqs, Tensor(d!)[] max_exp_avg_sqs, Tensor(e!)[] steps, Tensor(f!) entries, "
    "Tensor? coefficients, Tensor? lr_tensor, float lr, float beta1, float beta2, float eps, float weight_decay, "
    "float lambda_, int scope, bool amsgrad, bool maximize, Tensor? grad_scale, Tensor? found_inf) -> ()",
    reference=_project_adamw_,
    check=_check_adamw,
)
define(
    "project_sgd_(Tensor(a!)[] params, Tensor[] task, Tensor[] general, Tensor(b!)[] momentum_buffers, "
    "Tensor(f!) entries, Tensor? coefficients, Tensor? lr_tensor, float lr, float momentum, float dampening, "
    "float weight_decay, float lambda_, int scope, bool nesterov, bool maximize, bool first, "
    "Tensor? grad_scale, Tensor? found_inf) -> ()",
    reference=_project_sgd_,
    check=_check_sgd,
)
