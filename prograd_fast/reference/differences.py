"""Losses of a prediction's distance to a fixed target, coordinate by coordinate."""

import math

from torch import Tensor

from prograd_fast.reference.losses import Reduction, accumulation_dtype, reduced


def squared_error(prediction: Tensor, target: Tensor, reduction: Reduction = "mean") -> Tensor:
    """Squared error, (x - t)².

    Args:
        prediction: x, any shape and float dtype.
        target: t, the same shape.
        reduction: over all elements, "mean" (default) or "sum"; "none" keeps them.

    Returns:
        0-d, or the shape of the prediction with "none", in the accumulation dtype.
    """
    return reduced(_difference(prediction, target).square(), None, reduction)


def soft_wing(
    prediction: Tensor, target: Tensor, omega1: float = 2.0, omega2: float = 20.0, epsilon: float = 0.5
) -> Tensor:
    """Soft Wing loss of landmarks, summed over each row's coordinates, mean over the rows.

    With d = |x - t|, for each coordinate:

        d                                 where d < ω1
        ω2 ln(1 + d/ε) + ω1 - ω2 ln(1 + ω1/ε)     elsewhere

    It is continuous; its slope jumps from 1 to ω2 / (ε + ω1) at ω1. Source: Lin et al., Structure-Coherent Deep Feature
    Learning for Robust Face Alignment (arXiv:2006.11697); `open-mmlab/mmpose`, SoftWingLoss.

    Args:
        prediction: x, (B, ...) coordinates, any float dtype.
        target: t, the same shape.
        omega1: ω1 > 0, up to which the loss is linear.
        omega2: ω2 > 0, scale of the logarithm.
        epsilon: ε > 0, curvature of the logarithm.

    Returns:
        0-d, in the accumulation dtype.
    """
    distance = _difference(prediction, target).abs()
    shift = omega1 - omega2 * math.log1p(omega1 / epsilon)
    logarithm = omega2 * (distance / epsilon).log1p() + shift
    return distance.where(distance < omega1, logarithm).sum() / prediction.shape[0]


def squared_error_cotangent(prediction: Tensor, target: Tensor) -> Tensor:
    """The derivative of (x - t)² in x, element by element, in the accumulation dtype."""
    return 2 * _difference(prediction, target)


def soft_wing_cotangent(prediction: Tensor, target: Tensor, omega1: float, omega2: float, epsilon: float) -> Tensor:
    """The derivative of the Soft Wing loss in x, element by element, in the accumulation dtype; 0 where x = t."""
    difference = _difference(prediction, target)
    distance = difference.abs()
    return difference.sign() * (omega2 / (epsilon + distance)).where(~(distance < omega1), 1.0)


def _difference(prediction: Tensor, target: Tensor) -> Tensor:
    dtype = accumulation_dtype(prediction, target)
    return prediction.to(dtype) - target.to(dtype)
