"""One step of AdamW or SGD on the projected gradient: conflict test, projection and update in one operator."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from prograd_fast.ops.checks import Arguments
from prograd_fast.ops.common import SCOPES, Scope, accumulation_dtype
from prograd_fast.ops.projection import (
    check_gradients,
    check_rule,
    empty_entries,
    paired,
    project_formula,
    projected_gradients,
)
from prograd_fast.ops.registry import define, operator_for

# ---- formulas


def adamw(
    param: Tensor,
    g: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    max_exp_avg_sq: Tensor | None,
    step: Tensor | int,
    *,
    lr: float | Tensor,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 1e-2,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """θ, m, v and v̂ after one step of AdamW; see `project_adamw_formula`.

    Args:
        param: θ, any shape.
        g: gradient of θ's shape, projected, its sign already that of `maximize`.
        exp_avg: m.
        exp_avg_sq: v.
        max_exp_avg_sq: v̂ with amsgrad, else None.
        step: t, 1 at the first step; a number or a 0-d tensor.
        lr: learning rate, a number or a 0-d tensor.
        betas: β1, β2.
        eps: added to the root.
        weight_decay: wd, decoupled.

    Returns:
        New tensors in the accumulation dtype: the arithmetic does not round to the dtype of what comes in.
    """
    dtype = accumulation_dtype(param, g, exp_avg)
    beta1, beta2 = betas
    t = torch.as_tensor(step, dtype=torch.float64, device=param.device)
    step_size = (lr / (1 - beta1**t)).to(dtype)
    root_scale = (1 - beta2**t).sqrt().to(dtype)
    g = g.to(dtype)
    m = exp_avg.to(dtype)
    m = m + (1 - beta1) * (g - m)
    v = beta2 * exp_avg_sq.to(dtype) + (1 - beta2) * g * g
    largest = None if max_exp_avg_sq is None else torch.maximum(max_exp_avg_sq.to(dtype), v)
    root = (v if largest is None else largest).sqrt() / root_scale + eps
    return param.to(dtype) * (1 - lr * weight_decay) - step_size * m / root, m, v, largest


def sgd(
    param: Tensor,
    g: Tensor,
    momentum_buffer: Tensor | None,
    *,
    lr: float | Tensor,
    momentum: float = 0.0,
    dampening: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    first: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """θ and m after one step of SGD; see `project_sgd_formula`.

    Args:
        param: θ, any shape.
        g: gradient of θ's shape, projected, its sign already that of `maximize`.
        momentum_buffer: m, or None without momentum.
        lr: learning rate, a number or a 0-d tensor.
        momentum: μ.
        dampening: of the gradient that enters m.
        weight_decay: wd.
        nesterov: look ahead.
        first: whether this step starts m.

    Returns:
        New tensors in the accumulation dtype.
    """
    dtype = accumulation_dtype(param, g)
    g = g.to(dtype) + weight_decay * param.to(dtype)
    m = None
    if momentum_buffer is not None:
        m = g if first else momentum * momentum_buffer.to(dtype) + (1 - dampening) * g
        g = g + momentum * m if nesterov else m
    return param.to(dtype) - lr * g, m


@torch.no_grad()
def project_adamw_formula(
    params: Sequence[Tensor],
    task: Sequence[Tensor],
    general: Sequence[Tensor | None],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    step: int,
    *,
    lambda_: float = 1.0,
    scope: Scope = "tensor",
    noise_floor: float = 0.0,
    maximize: bool = False,
    max_exp_avg_sqs: Sequence[Tensor] | None = None,
    **options: Any,
) -> None:
    """Project, then AdamW (Loshchilov & Hutter, arXiv:1711.05101; amsgrad: Reddi et al., arXiv:1904.09237).

        g = ±project(a, b)                      - to maximize
        θ = θ (1 - lr·wd)
        m = β1 m + (1 - β1) g,  v = β2 v + (1 - β2) g²,  v̂ = max(v̂, v) with amsgrad, else v
        θ = θ - lr / (1 - β1^t) · m / (√(v̂ / (1 - β2^t)) + eps)

    Arguments are those of `project_adamw_`, for any float dtypes; `options` are those of `adamw`.
    """
    for i, g in enumerate(project_formula(task, general, lambda_, scope, noise_floor)):
        g = -g if maximize else g
        largest = None if max_exp_avg_sqs is None else max_exp_avg_sqs[i]
        updated = adamw(params[i], g, exp_avgs[i], exp_avg_sqs[i], largest, step, **options)
        for state, new in zip((params[i], exp_avgs[i], exp_avg_sqs[i], largest), updated, strict=True):
            if state is not None and new is not None:
                state.copy_(new)


@torch.no_grad()
def project_sgd_formula(
    params: Sequence[Tensor],
    task: Sequence[Tensor],
    general: Sequence[Tensor | None],
    momentum_buffers: Sequence[Tensor] | None = None,
    *,
    lambda_: float = 1.0,
    scope: Scope = "tensor",
    noise_floor: float = 0.0,
    maximize: bool = False,
    **options: Any,
) -> None:
    """Project, then SGD as torch.optim defines it.

        g = ±project(a, b) + wd·θ
        m = μ m + (1 - dampening) g, or g at the first step
        θ = θ - lr · (g + μ m with Nesterov, else m)

    Arguments are those of `project_sgd_`, for any float dtypes; `options` are those of `sgd`.
    """
    for i, g in enumerate(project_formula(task, general, lambda_, scope, noise_floor)):
        buffer = None if momentum_buffers is None else momentum_buffers[i]
        param, new_buffer = sgd(params[i], -g if maximize else g, buffer, **options)
        params[i].copy_(param)
        if buffer is not None and new_buffer is not None:
            buffer.copy_(new_buffer)


# ---- operators
#
# entries and coefficients as for project_out. found_inf above 0: only entries are written. steps advance by one.
# lr_tensor counts where it is given, and may be on the CPU.


class AdamWCall(NamedTuple):
    """The arguments of `project_adamw_`, in the order of its schema."""

    params: list[Tensor]
    task: list[Tensor]
    general: list[Tensor]
    exp_avgs: list[Tensor]
    exp_avg_sqs: list[Tensor]
    max_exp_avg_sqs: list[Tensor]
    steps: list[Tensor]
    entries: Tensor
    coefficients: Tensor | None
    lr_tensor: Tensor | None
    lr: float
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    lambda_: float
    noise_floor: float
    scope: int
    amsgrad: bool
    maximize: bool
    found_inf: Tensor | None


class SGDCall(NamedTuple):
    """The arguments of `project_sgd_`, in the order of its schema."""

    params: list[Tensor]
    task: list[Tensor]
    general: list[Tensor]
    momentum_buffers: list[Tensor]
    entries: Tensor
    coefficients: Tensor | None
    lr_tensor: Tensor | None
    lr: float
    momentum: float
    dampening: float
    weight_decay: float
    lambda_: float
    noise_floor: float
    scope: int
    nesterov: bool
    maximize: bool
    first: bool
    found_inf: Tensor | None


def _check_update(call: dict[str, Any]) -> Arguments:
    """Refuse arguments that neither update can take."""
    arguments = check_gradients(call)
    arguments.same("params", call["params"], call["task"], written=True)
    arguments.number("lr_tensor", call["lr_tensor"], or_on_the_cpu=True)
    arguments.number("found_inf", call["found_inf"])
    check_rule(call["lambda_"], call["noise_floor"])
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


def _adamw_kernel(*args: Any) -> None:
    call = AdamWCall(*args)
    for i, g in enumerate(_projected(call)):
        _write(call.steps[i], call.steps[i] + 1, call.found_inf)
        largest = call.max_exp_avg_sqs[i] if call.amsgrad else None
        updated = adamw(
            call.params[i],
            g,
            call.exp_avgs[i],
            call.exp_avg_sqs[i],
            largest,
            call.steps[i],
            lr=_rate(call),
            betas=(call.beta1, call.beta2),
            eps=call.eps,
            weight_decay=call.weight_decay,
        )
        states = (call.params[i], call.exp_avgs[i], call.exp_avg_sqs[i], largest)
        for state, new in zip(states, updated, strict=True):
            if state is not None and new is not None:
                _write(state, new, call.found_inf)


def _sgd_kernel(*args: Any) -> None:
    call = SGDCall(*args)
    for i, g in enumerate(_projected(call)):
        buffer = call.momentum_buffers[i] if call.momentum_buffers else None
        param, new_buffer = sgd(
            call.params[i],
            g,
            buffer,
            lr=_rate(call),
            momentum=call.momentum,
            dampening=call.dampening,
            weight_decay=call.weight_decay,
            nesterov=call.nesterov,
            first=call.first,
        )
        _write(call.params[i], param, call.found_inf)
        if buffer is not None and new_buffer is not None:
            _write(buffer, new_buffer, call.found_inf)


def _rate(call: AdamWCall | SGDCall) -> float | Tensor:
    return call.lr if call.lr_tensor is None else call.lr_tensor.reshape(())


def _projected(call: AdamWCall | SGDCall) -> list[Tensor]:
    """The gradients that the update sees, in the accumulation dtype; writes entries if there are no coefficients."""
    gradients = projected_gradients(
        call.task, call.general, call.coefficients, call.lambda_, call.noise_floor, call.scope, call.entries
    )
    return [-g if call.maximize else g for g in gradients]


def _write(state: Tensor, new: Tensor, found_inf: Tensor | None) -> None:
    """Round once, unless a gradient overflowed; without asking the device."""
    state.copy_(new if found_inf is None else torch.where(found_inf > 0, state, new.to(state.dtype)))


define(
    "project_adamw_(Tensor(a!)[] params, Tensor[] task, Tensor[] general, Tensor(b!)[] exp_avgs, "
    "Tensor(c!)[] exp_avg_sqs, Tensor(d!)[] max_exp_avg_sqs, Tensor(e!)[] steps, Tensor(f!) entries, "
    "Tensor? coefficients, Tensor? lr_tensor, float lr, float beta1, float beta2, float eps, float weight_decay, "
    "float lambda_, float noise_floor, int scope, bool amsgrad, bool maximize, Tensor? found_inf) -> ()",
    reference=_adamw_kernel,
    check=_check_adamw,
)
define(
    "project_sgd_(Tensor(a!)[] params, Tensor[] task, Tensor[] general, Tensor(b!)[] momentum_buffers, "
    "Tensor(f!) entries, Tensor? coefficients, Tensor? lr_tensor, float lr, float momentum, float dampening, "
    "float weight_decay, float lambda_, float noise_floor, int scope, bool nesterov, bool maximize, bool first, "
    "Tensor? found_inf) -> ()",
    reference=_sgd_kernel,
    check=_check_sgd,
)


# ---- functions


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
    noise_floor: float = 0.0,
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
        noise_floor: a unit with ‖b‖² ≤ floor²·‖a‖² is not projected (default: 0.0).
        maximize: ascend instead (default: False).
        max_exp_avg_sqs: v̂, changed in place; None for plain AdamW.

    Returns:
        The Gram entries, as `gram` returns them.

    Raises:
        ValueError, TypeError: as `gram`; or a state differs from its parameter in shape or device; or `lambda_` or
            `noise_floor` is negative or not finite. Nothing is written.
    """
    b = paired(task, general, scope)
    largest = [] if max_exp_avg_sqs is None else list(max_exp_avg_sqs)
    _check_states(params, task=task, exp_avgs=exp_avgs, exp_avg_sqs=exp_avg_sqs, max_exp_avg_sqs=largest or params)
    entries = empty_entries(task, b, scope)
    if params:
        steps = list(torch.full((len(params),), step - 1.0, device=params[0].device).unbind())
        operator_for("project_adamw_", params[0])(
            list(params), list(task), b, list(exp_avgs), list(exp_avg_sqs), largest, steps, entries, None,
            *_learning_rate(lr), *betas, eps, weight_decay, lambda_, noise_floor, SCOPES.index(scope),
            bool(largest), maximize, None,
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
    noise_floor: float = 0.0,
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
        noise_floor: a unit with ‖b‖² ≤ floor²·‖a‖² is not projected (default: 0.0).
        maximize: ascend instead (default: False).

    Returns:
        The Gram entries, as `gram` returns them.

    Raises:
        ValueError, TypeError: as `gram`; or a state differs from its parameter in shape or device; or `lambda_` or
            `noise_floor` is negative or not finite. Nothing is written.
    """
    b = paired(task, general, scope)
    buffers = [] if momentum_buffers is None else list(momentum_buffers)
    _check_states(params, task=task, momentum_buffers=buffers or params)
    entries = empty_entries(task, b, scope)
    if params:
        operator_for("project_sgd_", params[0])(
            list(params), list(task), b, buffers, entries, None, *_learning_rate(lr), momentum, dampening,
            weight_decay, lambda_, noise_floor, SCOPES.index(scope), nesterov, maximize, first, None,
        )  # fmt: skip
    return entries


def _check_states(params: Sequence[Tensor], **states: Sequence[Tensor]) -> None:
    """Raise ValueError unless every list of states has a tensor of each parameter's shape and device."""
    for name, tensors in states.items():
        if len(tensors) != len(params):
            raise ValueError(f"{name}: expected one tensor per parameter, got {len(tensors)} for {len(params)}.")
        for i, (param, tensor) in enumerate(zip(params, tensors, strict=True)):
            if tensor.shape != param.shape or tensor.device != param.device:
                raise ValueError(
                    f"{name}[{i}]: expected the parameter's shape {tuple(param.shape)} and device {param.device}, got "
                    f"{tuple(tensor.shape)} and {tensor.device}."
                )


def _learning_rate(lr: float | Tensor) -> tuple[Tensor | None, float]:
    return (lr, 0.0) if isinstance(lr, Tensor) else (None, lr)
