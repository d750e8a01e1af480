"""The end of a residual branch and the layer norm before the next, and its gradient.

Backward formulas take K cotangents at once, since prompt tuning differentiates two losses through one tower: K is the
leading size of the gradients. The weights are frozen and have no gradient.
"""

from typing import Any

import torch
from torch import Tensor

from prograd_fast.ops.checks import OneDtype
from prograd_fast.ops.common import accumulation_dtype
from prograd_fast.ops.registry import define

# ---- formulas


def add_layer_norm(
    x: Tensor, branch: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The end of a residual branch and the norm before the next: t = x + branch, (t - mean)·rstd·weight + bias.

    Args:
        x: (R, d) residual stream.
        branch: (R, d) what is added to it, same dtype.
        weight: (d,) in the accumulation dtype (float32; float64 for float64).
        bias: (d,) likewise.
        eps: added to the (biased) variance.

    Returns:
        total (R, d), normed (R, d), both as `x`, and statistics (R, 2): mean and 1/√(variance + eps) of the total as it
        is stored, in the accumulation dtype.
    """
    dtype = accumulation_dtype(x)
    total = (x.to(dtype) + branch.to(dtype)).to(x.dtype)
    t = total.to(dtype)
    mean = t.mean(1)
    rstd = ((t - mean[:, None]).square().mean(1) + eps).rsqrt()
    normed = (t - mean[:, None]) * rstd[:, None] * weight + bias
    return total, normed.to(x.dtype), torch.stack([mean, rstd], 1)


def layer_norm_backward(d_total: Tensor, d_normed: Tensor, total: Tensor, statistics: Tensor, weight: Tensor) -> Tensor:
    """The gradient of `add_layer_norm` in both `x` and `branch`, from those of its results.

    With h = (t - mean)·rstd and u = d_normed·weight: d_total + rstd·(u - mean(u) - h·mean(u·h)).

    Args:
        d_total: (K, R, d) gradients that pass the norm by.
        d_normed: (K, R, d) gradients of the norm's result.
        total: (R, d), `statistics` (R, 2) and `weight` (d,) as in `add_layer_norm`.
        statistics: see there.
        weight: see there.

    Returns:
        (K, R, d), as `d_total`.
    """
    dtype = accumulation_dtype(total)
    mean, rstd = statistics[:, 0, None], statistics[:, 1, None]
    h = (total.to(dtype) - mean) * rstd
    u = d_normed.to(dtype) * weight
    d = rstd * (u - u.mean(2, keepdim=True) - h * (u * h).mean(2, keepdim=True))
    return (d_total.to(dtype) + d).to(d_total.dtype)


# ---- operators, contiguous
#
# add_layer_norm_out    x, branch, total, normed (R, d); weight, bias, statistics in the accumulation dtype
# layer_norm_backward_  d_total (K, R, d) += gradient through the norm


def _check_add_layer_norm(call: dict[str, Any]) -> None:
    arguments = OneDtype("x", call["x"], "rows, width")
    rows, width = arguments.shape
    for name in ("x", "branch", "total", "normed"):
        arguments.whole(name, call[name], (rows, width))
    for name in ("weight", "bias"):
        arguments.whole(name, call[name], (width,), wide=True)
    arguments.whole("statistics", call["statistics"], (rows, 2), wide=True)


def _check_layer_norm_backward(call: dict[str, Any]) -> None:
    arguments = OneDtype("d_total", call["d_total"], "cotangents, rows, width")
    _, rows, width = arguments.shape
    arguments.whole("d_total", call["d_total"], arguments.shape)
    arguments.whole("d_normed", call["d_normed"], arguments.shape)
    arguments.whole("total", call["total"], (rows, width))
    arguments.whole("statistics", call["statistics"], (rows, 2), wide=True)
    arguments.whole("weight", call["weight"], (width,), wide=True)


def _kernel(
    x: Tensor,
    branch: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    *,
    total: Tensor,
    normed: Tensor,
    statistics: Tensor,
) -> None:
    results = add_layer_norm(x, branch, weight, bias, eps)
    for out, result in zip((total, normed, statistics), results, strict=True):
        out.copy_(result)


def _backward_kernel(d_total: Tensor, d_normed: Tensor, total: Tensor, statistics: Tensor, weight: Tensor) -> None:
    d_total.copy_(layer_norm_backward(d_total, d_normed, total, statistics, weight))


define(
    "add_layer_norm_out(Tensor x, Tensor branch, Tensor weight, Tensor bias, float eps, *, Tensor(a!) total, "
    "Tensor(b!) normed, Tensor(c!) statistics) -> ()",
    reference=_kernel,
    check=_check_add_layer_norm,
)
define(
    "layer_norm_backward_(Tensor(a!) d_total, Tensor d_normed, Tensor total, Tensor statistics, Tensor weight) -> ()",
    reference=_backward_kernel,
    check=_check_layer_norm_backward,
)
