"""Losses of a prediction's distance to a fixed target; value and gradient in one pass over both."""

import math

import torch
from torch import Tensor

from prograd_fast.checks import check_differences, check_soft_wing
from prograd_fast.reference.losses import Reduction


def squared_error(prediction: Tensor, target: Tensor, reduction: Reduction = "mean") -> Tensor:
    """Squared error (x - t)², mean or sum over all elements. Differentiable once, in the prediction.

    Args:
        prediction: x, any shape; float64, float32, bfloat16 or float16.
        target: t, the same shape and device; fixed.
        reduction: "mean" (default) or "sum".

    Returns:
        0-d, float32 or wider.

    Raises:
        TypeError: something is not floating point.
        ValueError: shapes or devices differ, the target requires grad, or the reduction is another.
    """
    check_differences(prediction, target)
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction: expected 'mean' or 'sum', got {reduction!r}.")
    count = prediction.numel() if reduction == "mean" else 1
    loss, _ = torch.ops.prograd_fast.difference_loss(prediction, target, False, 1.0, 1.0, 1.0, _over(count))
    return loss


def soft_wing(
    prediction: Tensor, target: Tensor, omega1: float = 2.0, omega2: float = 20.0, epsilon: float = 0.5
) -> Tensor:
    """Soft Wing loss of landmarks, summed over each row's coordinates, mean over the rows.

    With d = |x - t|: d where d < ω1, else ω2 ln(1 + d/ε) + ω1 - ω2 ln(1 + ω1/ε). Differentiable once, in the
    prediction. Source: arXiv:2006.11697; formula: `prograd_fast.reference.soft_wing`.

    Args:
        prediction: x, (B, ...) coordinates, such as (B, points, 2); float64, float32, bfloat16 or float16.
        target: t, the same shape and device; fixed.
        omega1: ω1 > 0, up to which the loss is linear (default: 2.0, as the authors').
        omega2: ω2 > 0, scale of the logarithm (default: 20.0).
        epsilon: ε > 0, curvature of the logarithm (default: 0.5).

    Returns:
        0-d, float32 or wider.

    Raises:
        TypeError: something is not floating point.
        ValueError: shapes or devices differ, the target requires grad, or a parameter is not above 0.
    """
    check_differences(prediction, target)
    check_soft_wing(omega1, omega2, epsilon)
    if prediction.dim() == 0:
        raise ValueError("prediction: expected shape (batch, ...), got a scalar. Add a dimension for the batch.")
    factor = _over(prediction.shape[0])
    loss, _ = torch.ops.prograd_fast.difference_loss(prediction, target, True, omega1, omega2, epsilon, factor)
    return loss


def _over(count: int) -> float:
    return 1 / count if count else math.nan  # the mean of nothing, as in torch
