"""One AdamW or SGD step on the projected gradient, as the formulas say."""

from collections.abc import Sequence

import torch
from torch import Tensor

from prograd_fast.reference.losses import accumulation_dtype
from prograd_fast.reference.projection import Scope, project


def adamw(
    param: Tensor,
    g: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    max_exp_avg_sq: Tensor | None,
    step: Tensor | int,
    *,
    lr: float | Tensor,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """θ, m, v and v̂ after one step of AdamW; see `project_adamw_`.

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
    momentum: float,
    dampening: float,
    weight_decay: float,
    nesterov: bool,
    first: bool,
) -> tuple[Tensor, Tensor | None]:
    """θ and m after one step of SGD; see `project_sgd_`.

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
def project_adamw_(
    params: Sequence[Tensor],
    task: Sequence[Tensor],
    general: Sequence[Tensor | None],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    step: int,
    *,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 1e-2,
    lambda_: float = 1.0,
    scope: Scope = "tensor",
    maximize: bool = False,
    max_exp_avg_sqs: Sequence[Tensor] | None = None,
) -> None:
    """Project, then AdamW (Loshchilov & Hutter, arXiv:1711.05101; amsgrad: Reddi et al., arXiv:1904.09237).

        g = ±project(a, b)                      - to maximize
        θ = θ (1 - lr·wd)
        m = β1 m + (1 - β1) g,  v = β2 v + (1 - β2) g²,  v̂ = max(v̂, v) with amsgrad, else v
        θ = θ - lr / (1 - β1^t) · m / (√(v̂ / (1 - β2^t)) + eps)

    Args:
        params: θ, changed in place.
        task: a, one per parameter; read only.
        general: b or None, one per parameter; read only.
        exp_avgs: m, changed in place.
        exp_avg_sqs: v, changed in place.
        step: t, 1 at the first step.
        lr: learning rate.
        betas: β1, β2.
        eps: added to the root.
        weight_decay: wd, decoupled.
        lambda_: λ of the projection.
        scope: unit of the projection; see `gram`.
        maximize: ascend instead.
        max_exp_avg_sqs: v̂, changed in place; None for plain AdamW.
    """
    for i, g in enumerate(project(task, general, lambda_, scope)):
        largest = None if max_exp_avg_sqs is None else max_exp_avg_sqs[i]
        updated = adamw(
            params[i],
            -g if maximize else g,
            exp_avgs[i],
            exp_avg_sqs[i],
            largest,
            step,
            lr=lr,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
        )
        for state, new in zip((params[i], exp_avgs[i], exp_avg_sqs[i], largest), updated, strict=True):
            if state is not None and new is not None:
                state.copy_(new)


@torch.no_grad()
def project_sgd_(
    params: Sequence[Tensor],
    task: Sequence[Tensor],
    general: Sequence[Tensor | None],
    momentum_buffers: Sequence[Tensor] | None = None,
    *,
    first: bool = False,
    lr: float,
    momentum: float = 0.0,
    dampening: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    lambda_: float = 1.0,
    scope: Scope = "tensor",
    maximize: bool = False,
) -> None:
    """Project, then SGD as torch.optim defines it.

        g = ±project(a, b) + wd·θ
        m = μ m + (1 - dampening) g, or g at the first step
        θ = θ - lr · (g + μ m with Nesterov, else m)

    Args:
        params: θ, changed in place.
        task: a, one per parameter; read only.
        general: b or None, one per parameter; read only.
        momentum_buffers: m, changed in place; None without momentum.
        first: whether this is the first step, which starts m.
        lr: learning rate.
        momentum: μ.
        dampening: of the gradient that enters m.
        weight_decay: wd, added to the gradient after the projection.
        nesterov: look ahead.
        lambda_: λ of the projection.
        scope: unit of the projection; see `gram`.
        maximize: ascend instead.
    """
    for i, g in enumerate(project(task, general, lambda_, scope)):
        buffer = None if momentum_buffers is None else momentum_buffers[i]
        param, new_buffer = sgd(
            params[i],
            -g if maximize else g,
            buffer,
            lr=lr,
            momentum=momentum,
            dampening=dampening,
            weight_decay=weight_decay,
            nesterov=nesterov,
            first=first,
        )
        params[i].copy_(param)
        if buffer is not None and new_buffer is not None:
            buffer.copy_(new_buffer)
