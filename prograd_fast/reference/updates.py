"""One AdamW or SGD step on the projected gradient, as the formulas say; in place, one tensor list at a time."""

from collections.abc import Sequence

import torch
from torch import Tensor

from prograd_fast.reference.projection import Scope, project


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
    beta1, beta2 = betas
    for i, g in enumerate(project(task, general, lambda_, scope)):
        g = -g if maximize else g
        params[i].mul_(1 - lr * weight_decay)
        exp_avgs[i].mul_(beta1).add_(g, alpha=1 - beta1)
        exp_avg_sqs[i].mul_(beta2).addcmul_(g, g, value=1 - beta2)
        v = exp_avg_sqs[i]
        if max_exp_avg_sqs is not None:
            v = max_exp_avg_sqs[i].copy_(torch.maximum(max_exp_avg_sqs[i], v))
        root = (v / (1 - beta2**step)).sqrt()
        params[i].sub_(lr / (1 - beta1**step) * exp_avgs[i] / (root + eps))


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
        g = (-g if maximize else g) + weight_decay * params[i]
        if momentum_buffers is not None:
            m = momentum_buffers[i]
            m.copy_(g if first else momentum * m + (1 - dampening) * g)
            g = g + momentum * m if nesterov else m
        params[i].sub_(lr * g)
