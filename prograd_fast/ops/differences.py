"""`difference_loss`: a sum over elements of a function of prediction minus target, and its gradient."""

from typing import Any

import torch
from torch import Tensor

from prograd_fast.ops.checks import Arguments, check_positive
from prograd_fast.ops.gradients import register_losses
from prograd_fast.ops.registry import define
from prograd_fast.reference import differences as reference
from prograd_fast.reference.losses import accumulation_dtype

# factor times the sum of squares, or of Soft Wing's function
INPUTS = (
    "Tensor prediction, Tensor target, bool soft_wing, float omega1, float omega2, float epsilon, float factor"
)  # fmt: skip


def _check(call: dict[str, Any]) -> None:
    arguments, shape = Arguments(call["prediction"]), tuple(call["prediction"].shape)
    arguments.floating("prediction", call["prediction"], shape)
    arguments.floating("target", call["target"], shape)
    for name in ("omega1", "omega2", "epsilon") if call["soft_wing"] else ():
        check_positive(name, call[name])
    arguments.result("loss", call.get("loss"), ())
    arguments.result("cotangents", call.get("cotangents"), shape)


def _difference_loss_out(
    prediction: Tensor,
    target: Tensor,
    soft_wing: bool,
    omega1: float,
    omega2: float,
    epsilon: float,
    factor: float,
    *,
    loss: Tensor,
    cotangents: Tensor,
) -> None:
    if soft_wing:
        total = reference.soft_wing(prediction.unsqueeze(0), target.unsqueeze(0), omega1, omega2, epsilon)
        derivative = reference.soft_wing_cotangent(prediction, target, omega1, omega2, epsilon)
    else:
        total = reference.squared_error(prediction, target, "sum")
        derivative = reference.squared_error_cotangent(prediction, target)
    loss.copy_(factor * total)
    cotangents.copy_(factor * derivative)


def _empty_results(prediction: Tensor, target: Tensor, *options: float) -> tuple[Tensor, Tensor]:
    loss = prediction.new_empty((), dtype=accumulation_dtype(prediction, target))
    return loss, prediction.new_empty(prediction.shape)


def _difference_loss(prediction: Tensor, target: Tensor, *options: float) -> tuple[Tensor, Tensor]:
    loss, cotangents = _empty_results(prediction, target)
    torch.ops.prograd_fast.difference_loss_out(prediction, target, *options, loss=loss, cotangents=cotangents)
    return loss, cotangents


define(
    f"difference_loss_out({INPUTS}, *, Tensor(a!) loss, Tensor(b!) cotangents) -> ()",
    reference=_difference_loss_out,
    check=_check,
)
define(
    f"difference_loss({INPUTS}) -> (Tensor loss, Tensor cotangents)",
    reference=_difference_loss,
    fake=_empty_results,
    check=_check,
)
register_losses("difference_loss", differentiable=0, per_row=False, losses=1)
