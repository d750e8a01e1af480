"""`linear_cross_entropy`: the task half of `linear_dual_loss`, mean over the rows."""

from typing import Any

import torch
from torch import Tensor

from prograd_fast.ops.checks import Arguments
from prograd_fast.ops.gradients import register_losses
from prograd_fast.ops.registry import define
from prograd_fast.reference import losses as reference

INPUTS = "Tensor features, Tensor classes, Tensor labels, float scale"


def _check(call: dict[str, Any]) -> None:
    arguments = Arguments(call["features"])
    rows, width = arguments.sizes("features", call["features"], "rows, width")
    classes, _ = arguments.sizes("classes", call["classes"], "classes, width")
    arguments.floating("classes", call["classes"], (classes, width))
    if rows and not classes:
        raise ValueError("classes: expected at least one, got none.")
    arguments.integers("labels", call["labels"], (rows,))
    arguments.result("loss", call.get("loss"), ())
    arguments.result("cotangents", call.get("cotangents"), (classes, width))


def _linear_cross_entropy_out(
    features: Tensor, classes: Tensor, labels: Tensor, scale: float, *, loss: Tensor, cotangents: Tensor
) -> None:
    logits = reference.linear_logits(features, classes, scale)
    loss.copy_(torch.nn.functional.cross_entropy(logits, labels))
    by_logit = reference.dual_loss_cotangents(logits, logits, labels)[0]
    cotangents.copy_(scale * (by_logit.mT @ features.to(by_logit.dtype)))


def _empty_results(features: Tensor, classes: Tensor, labels: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    loss = features.new_empty((), dtype=reference.accumulation_dtype(features, classes))
    return loss, classes.new_empty(classes.shape)


def _linear_cross_entropy(features: Tensor, classes: Tensor, labels: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    loss, cotangents = _empty_results(features, classes, labels, scale)
    torch.ops.prograd_fast.linear_cross_entropy_out(features, classes, labels, scale, loss=loss, cotangents=cotangents)
    return loss, cotangents


define(
    f"linear_cross_entropy_out({INPUTS}, *, Tensor(a!) loss, Tensor(b!) cotangents) -> ()",
    reference=_linear_cross_entropy_out,
    check=_check,
)
define(
    f"linear_cross_entropy({INPUTS}) -> (Tensor loss, Tensor cotangents)",
    reference=_linear_cross_entropy,
    fake=_empty_results,
    check=_check,
)
register_losses("linear_cross_entropy", differentiable=1, per_row=False, losses=1)
