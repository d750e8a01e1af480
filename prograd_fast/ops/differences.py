"""Losses of a prediction's distance to a fixed target; value and gradient in one pass over both."""

import math
from typing import Any

import torch
from torch import Tensor

from prograd_fast.ops.checks import Arguments, check_devices, check_fixed, check_floating, check_nodes, check_positive
from prograd_fast.ops.common import Reduction, accumulation_dtype, empty, reduced
from prograd_fast.ops.losses import define_loss, losses_of

# ---- formulas


def squared_error_formula(prediction: Tensor, target: Tensor, reduction: Reduction = "mean") -> Tensor:
    """Squared error (x - t)², as `squared_error`; reduction "none" keeps the elements."""
    return reduced(_difference(prediction, target).square(), None, reduction)


def soft_wing_formula(
    prediction: Tensor, target: Tensor, omega1: float = 2.0, omega2: float = 20.0, epsilon: float = 0.5
) -> Tensor:
    """Soft Wing loss of landmarks, summed over each row's coordinates, mean over the rows.

    With d = |x - t|, for each coordinate:

        d                                 where d < ω1
        ω2 ln(1 + d/ε) + ω1 - ω2 ln(1 + ω1/ε)     elsewhere

    It is continuous; its slope jumps from 1 to ω2 / (ε + ω1) at ω1. Source: Lin et al., Structure-Coherent Deep Feature
    Learning for Robust Face Alignment (arXiv:2006.11697); `open-mmlab/mmpose`, SoftWingLoss. Arguments and result are
    those of `soft_wing`, for any float dtype.
    """
    return _soft_wing(prediction, target, omega1, omega2, epsilon).sum() / prediction.shape[0]


def squared_error_cotangent(prediction: Tensor, target: Tensor) -> Tensor:
    """The derivative of (x - t)² in x, element by element, in the accumulation dtype."""
    return 2 * _difference(prediction, target)


def soft_wing_cotangent(prediction: Tensor, target: Tensor, omega1: float, omega2: float, epsilon: float) -> Tensor:
    """The derivative of the Soft Wing loss in x, element by element, in the accumulation dtype; 0 where x = t."""
    difference = _difference(prediction, target)
    distance = difference.abs()
    return difference.sign() * (omega2 / (epsilon + distance)).where(~(distance < omega1), 1.0)


def neighbour_offsets(points: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """The mean of each node's neighbours minus the node, (B, N, D), as `points`; rows (E,) listen to columns (E,)."""
    share = _shares(rows, points.shape[1]).to(points.dtype)
    return (-points).index_add(1, rows, share[rows, None] * points[:, columns])


def structure_loss_formula(
    prediction: Tensor,
    target: Tensor,
    rows: Tensor,
    columns: Tensor,
    omega1: float = 2.0,
    omega2: float = 20.0,
    epsilon: float = 0.5,
    reduction: str = "mean",
) -> tuple[Tensor, Tensor]:
    """Soft Wing loss of points and of their offsets, for any float dtype; see `structure_loss`."""
    factor = _structure_factor(prediction, reduction)
    return structure_sums(prediction, target, rows, columns, omega1, omega2, epsilon, factor)


def structure_sums(
    prediction: Tensor, target: Tensor, rows: Tensor, columns: Tensor, *options: float
) -> tuple[Tensor, Tensor]:
    """Factor times the sum of Soft Wing's function of the points, and of their offsets; see `structure_loss`."""
    *shape, factor = options
    dtype = accumulation_dtype(prediction, target)
    x, t = prediction.to(dtype), target.to(dtype)
    pairs = (x, t), (neighbour_offsets(x, rows, columns), neighbour_offsets(t, rows, columns))
    points, offsets = (factor * _soft_wing(*pair, *shape).sum() for pair in pairs)
    return points, offsets


def structure_loss_cotangents(
    prediction: Tensor, target: Tensor, rows: Tensor, columns: Tensor, *options: float
) -> Tensor:
    """The derivatives of both losses in the prediction, (2, B, N, D): of the points; of the offsets, sent back."""
    *shape, factor = options
    difference, nothing = _difference(prediction, target), prediction.new_zeros(())
    slope = soft_wing_cotangent(neighbour_offsets(difference, rows, columns), nothing, *shape)
    share = _shares(rows, prediction.shape[1]).to(slope.dtype)
    back = (-slope).index_add(1, columns, share[rows, None] * slope[:, rows])
    return factor * torch.stack([soft_wing_cotangent(difference, nothing, *shape), back])


def _shares(rows: Tensor, n: int) -> Tensor:
    """1 over the number of edges of each row, (N,) float32, as the authors' matrix."""
    ones = torch.ones(len(rows), device=rows.device)
    return torch.zeros(n, device=rows.device).index_add(0, rows, ones).reciprocal()


def _soft_wing(prediction: Tensor, target: Tensor, omega1: float, omega2: float, epsilon: float) -> Tensor:
    distance = _difference(prediction, target).abs()
    shift = omega1 - omega2 * math.log1p(omega1 / epsilon)
    return distance.where(distance < omega1, omega2 * (distance / epsilon).log1p() + shift)


def _difference(prediction: Tensor, target: Tensor) -> Tensor:
    dtype = accumulation_dtype(prediction, target)
    return prediction.to(dtype) - target.to(dtype)


# ---- operator
#
# loss () = factor · Σ f(prediction - target), f the square or Soft Wing's function; cotangents its derivative in the
# prediction.


def _check(call: dict[str, Any]) -> None:
    arguments, shape = Arguments(call["prediction"]), tuple(call["prediction"].shape)
    arguments.floating("prediction", call["prediction"], shape)
    arguments.floating("target", call["target"], shape)
    for name in ("omega1", "omega2", "epsilon") if call["soft_wing"] else ():
        check_positive(name, call[name])
    arguments.result("loss", call.get("loss"), ())
    arguments.result("cotangents", call.get("cotangents"), shape)


def _formula(prediction: Tensor, target: Tensor, soft_wing: bool, *options: float) -> Tensor:
    *shape, factor = options
    each = _soft_wing(prediction, target, *shape) if soft_wing else _difference(prediction, target).square()
    return factor * each.sum()


def _kernel(
    prediction: Tensor, target: Tensor, soft_wing: bool, *options: float, loss: Tensor, cotangents: Tensor
) -> None:
    *shape, factor = options
    loss.copy_(_formula(prediction, target, soft_wing, *options))
    derivative = (
        soft_wing_cotangent(prediction, target, *shape) if soft_wing else squared_error_cotangent(prediction, target)
    )
    cotangents.copy_(factor * derivative)


def _empty(prediction: Tensor, target: Tensor, *options: float) -> tuple[Tensor, ...]:
    loss = prediction.new_empty((), dtype=accumulation_dtype(prediction, target))
    return loss, empty(prediction, prediction.shape, accumulation_dtype(prediction))


define_loss(
    "difference_loss",
    "Tensor prediction, Tensor target, bool soft_wing, float omega1, float omega2, float epsilon, float factor",
    ("loss", "cotangents"),
    "Tensor loss, Tensor cotangents",
    kernel=_kernel,
    empty=_empty,
    formula=_formula,
    check=_check,
    differentiable=0,
    per_row=False,
)

# losses (2,) = factor · Σ f(prediction - target), of points (B, N, D) and of their offsets from the mean of their
# neighbours by rows and columns (E,) int64; cotangents (2, B, N, D)


def _check_structure(call: dict[str, Any]) -> None:
    arguments = Arguments(call["prediction"])
    shape = arguments.sizes("prediction", call["prediction"], "batch, nodes, axes")
    arguments.floating("target", call["target"], shape)
    arguments.ends(call["rows"], call["columns"])
    for name in ("omega1", "omega2", "epsilon"):
        check_positive(name, call[name])
    arguments.result("losses", call.get("losses"), (2,))
    arguments.result("cotangents", call.get("cotangents"), (2, *shape))


def _structure_kernel(*args: Any, losses: Tensor, cotangents: Tensor) -> None:
    prediction, _, rows, columns, *_ = args
    check_nodes(rows, columns, prediction.shape[1])
    losses.copy_(torch.stack(structure_sums(*args)))
    cotangents.copy_(structure_loss_cotangents(*args))


def _empty_structure(prediction: Tensor, target: Tensor, *options: Any) -> tuple[Tensor, ...]:
    losses = prediction.new_empty(2, dtype=accumulation_dtype(prediction, target))
    return losses, empty(prediction, (2, *prediction.shape), accumulation_dtype(prediction))


define_loss(
    "structure_loss",
    "Tensor prediction, Tensor target, Tensor rows, Tensor columns, float omega1, float omega2, float epsilon, "
    "float factor",
    ("losses", "cotangents"),
    "Tensor points, Tensor offsets, Tensor cotangents",
    kernel=_structure_kernel,
    empty=_empty_structure,
    formula=structure_sums,
    check=_check_structure,
    differentiable=0,
    per_row=False,
)

# ---- functions


def squared_error(prediction: Tensor, target: Tensor, reduction: Reduction = "mean") -> Tensor:
    """Squared error (x - t)², mean or sum over all elements. Differentiable in the prediction.

    Args:
        prediction: x, any shape; float64, float32, bfloat16 or float16.
        target: t, the same shape and device; fixed.
        reduction: "mean" (default) or "sum".

    Returns:
        0-d, float32 or wider; NaN for the mean of nothing, as in torch.

    Raises:
        TypeError: something is not floating point.
        ValueError: shapes or devices differ, the target requires grad, or the reduction is another.
    """
    check_differences(prediction, target)
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction: expected 'mean' or 'sum', got {reduction!r}.")
    count = prediction.numel() if reduction == "mean" else 1
    loss, *_ = losses_of("difference_loss", prediction, target, False, 1.0, 1.0, 1.0, _reciprocal(count))
    return loss


def soft_wing(
    prediction: Tensor, target: Tensor, omega1: float = 2.0, omega2: float = 20.0, epsilon: float = 0.5
) -> Tensor:
    """Soft Wing loss of landmarks, summed over each row's coordinates, mean over the rows.

    With d = |x - t|: d where d < ω1, else ω2 ln(1 + d/ε) + ω1 - ω2 ln(1 + ω1/ε). Differentiable in the prediction.
    Source: arXiv:2006.11697; formula: `prograd_fast.reference.soft_wing`.

    Args:
        prediction: x, (B, ...) coordinates, such as (B, points, 2); float64, float32, bfloat16 or float16.
        target: t, the same shape and device; fixed.
        omega1: ω1 > 0, up to which the loss is linear (default: 2.0, as the authors').
        omega2: ω2 > 0, scale of the logarithm (default: 20.0).
        epsilon: ε > 0, curvature of the logarithm (default: 0.5).

    Returns:
        0-d, float32 or wider; NaN for the mean of nothing, as in torch.

    Raises:
        TypeError: something is not floating point.
        ValueError: shapes or devices differ, the target requires grad, or a parameter is not above 0.
    """
    check_differences(prediction, target)
    check_soft_wing(omega1, omega2, epsilon)
    if prediction.dim() == 0:
        raise ValueError("prediction: expected shape (batch, ...), got a scalar. Add a dimension for the batch.")
    factor = _reciprocal(prediction.shape[0])
    loss, *_ = losses_of("difference_loss", prediction, target, True, omega1, omega2, epsilon, factor)
    return loss


def structure_loss(
    prediction: Tensor,
    target: Tensor,
    rows: Tensor,
    columns: Tensor,
    omega1: float = 2.0,
    omega2: float = 20.0,
    epsilon: float = 0.5,
    reduction: str = "mean",
) -> tuple[Tensor, Tensor]:
    """Soft Wing loss of landmarks, and of their offsets from the mean of their neighbours, in one pass over both.

    With L the row-normalised graph minus the identity: f(x - t) and f(L x - L t), f as in `soft_wing`. Differentiable
    in the prediction; the kernel has the first derivative. Source: arXiv:2006.11697.

    Args:
        prediction: x, (B, N, D) coordinates; float64, float32, bfloat16 or float16.
        target: t, the same shape and device; fixed.
        rows: (E,) int64 in 0 ... N - 1, the listening landmark of each edge.
        columns: (E,) int64, its neighbour.
        omega1: see `soft_wing` (default: 2.0).
        omega2: (default: 20.0).
        epsilon: (default: 0.5).
        reduction: "mean" (default) over all B·N·D numbers, as the authors; "batchmean": their sum over B, as
            `soft_wing`.

    Returns:
        Two 0-d losses, float32 or wider: of points, of offsets; NaN of nothing, as torch's mean.

    Raises:
        TypeError: coordinates are not floating point, or an index not int64.
        ValueError: shapes or devices do not fit, the target requires grad, a parameter is not above 0, the reduction is
            another, or (on a CPU) an index is out of range.
    """
    check_differences(prediction, target)
    check_soft_wing(omega1, omega2, epsilon)
    if prediction.dim() != 3:
        raise ValueError(f"prediction: expected shape (batch, landmarks, axes), got {tuple(prediction.shape)}.")
    check_devices(prediction=prediction, rows=rows, columns=columns)
    graph = rows, columns, omega1, omega2, epsilon, _structure_factor(prediction, reduction)
    points, offsets, *_ = losses_of("structure_loss", prediction, target, *graph)
    return points, offsets


def check_differences(prediction: Tensor, target: Tensor) -> None:
    """Raise TypeError or ValueError for a prediction and a target that have no distance."""
    check_floating("prediction", prediction)
    check_floating("target", target)
    if target.shape != prediction.shape:
        raise ValueError(
            f"target: expected the prediction's shape {tuple(prediction.shape)}, got {tuple(target.shape)}. "
            "Nothing is broadcast."
        )
    check_fixed("target", target)
    check_devices(prediction=prediction, target=target)


def check_soft_wing(omega1: float, omega2: float, epsilon: float) -> None:
    """Raise ValueError for parameters that the Soft Wing loss has no value for."""
    for name, value, usual in (("omega1", omega1, 2.0), ("omega2", omega2, 20.0), ("epsilon", epsilon, 0.5)):
        if not 0 < value < float("inf"):
            raise ValueError(f"{name}: expected a number above 0, got {value!r}. Use {usual} as the authors do.")


def _structure_factor(prediction: Tensor, reduction: str) -> float:
    if reduction not in ("mean", "batchmean"):
        raise ValueError(f"reduction: expected 'mean' or 'batchmean', got {reduction!r}.")
    return _reciprocal(prediction.numel() if reduction == "mean" else prediction.shape[0])


def _reciprocal(count: int) -> float:
    return 1 / count if count else math.nan  # the mean of nothing, as in torch
