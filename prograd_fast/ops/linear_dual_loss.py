"""`linear_dual_loss`: the dual loss of logits that are never stored, features times class features."""

from typing import Any

import torch
from torch import Tensor

from prograd_fast.ops.checks import Arguments
from prograd_fast.ops.dual_loss import check_rows
from prograd_fast.ops.gradients import register_losses
from prograd_fast.ops.registry import define
from prograd_fast.reference import losses as reference

INPUTS = (
    "Tensor features, Tensor student_classes, Tensor teacher_classes, Tensor labels, Tensor? teacher_offset, "
    "Tensor? task_weight, Tensor? general_weight, float scale, float temperature, bool soft_ce, int reduction"
)


def _check(call: dict[str, Any]) -> None:
    arguments = Arguments(call["features"])
    rows, width = arguments.sizes("features", call["features"], "rows, width")
    classes, _ = arguments.sizes("student_classes", call["student_classes"], "classes, width")
    arguments.floating("student_classes", call["student_classes"], (classes, width))
    arguments.floating("teacher_classes", call["teacher_classes"], (classes, width))
    check_rows(arguments, call, rows, classes)
    arguments.result("cotangents", call.get("cotangents"), (2, classes, width))


def _linear_dual_loss_out(
    features: Tensor,
    student_classes: Tensor,
    teacher_classes: Tensor,
    labels: Tensor,
    teacher_offset: Tensor | None,
    task_weight: Tensor | None,
    general_weight: Tensor | None,
    scale: float,
    temperature: float,
    soft_ce: bool,
    reduction: int,
    *,
    losses: Tensor,
    cotangents: Tensor,
    correct: Tensor,
) -> None:
    student = reference.linear_logits(features, student_classes, scale)
    teacher = reference.linear_logits(features, teacher_classes, scale)
    options: dict[str, Any] = {
        "teacher_offset": teacher_offset,
        "task_weight": task_weight,
        "general_weight": general_weight,
        "reduction": reference.REDUCTIONS[reduction],
    }
    general: reference.General = "soft_ce" if soft_ce else "kl"
    losses.copy_(torch.stack(reference.dual_loss(student, teacher, labels, temperature, general, **options)))
    by_logit = reference.dual_loss_cotangents(student, teacher, labels, temperature, **options)
    cotangents.copy_(scale * (by_logit.mT @ features.to(by_logit.dtype)))
    correct.copy_(reference.count_correct(student, labels))


def _empty_results(features: Tensor, student_classes: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dtype = reference.accumulation_dtype(features, student_classes)
    rows = features.shape[:1] if reference.REDUCTIONS[others[-1]] == "none" else ()
    task, general = (features.new_empty(rows, dtype=dtype) for _ in range(2))
    cotangents = student_classes.new_empty((2, *student_classes.shape))
    return task, general, cotangents, features.new_empty((), dtype=torch.int64)


def _linear_dual_loss(features: Tensor, student_classes: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    task, _, cotangents, correct = _empty_results(features, student_classes, *others)
    losses = task.new_empty((2, *task.shape))
    torch.ops.prograd_fast.linear_dual_loss_out(
        features, student_classes, *others, losses=losses, cotangents=cotangents, correct=correct
    )
    return losses[0].clone(), losses[1].clone(), cotangents, correct  # results of an operator share no memory


define(
    f"linear_dual_loss_out({INPUTS}, *, Tensor(a!) losses, Tensor(b!) cotangents, Tensor(c!) correct) -> ()",
    reference=_linear_dual_loss_out,
    check=_check,
)
define(
    f"linear_dual_loss({INPUTS}) -> (Tensor task, Tensor general, Tensor cotangents, Tensor correct)",
    reference=_linear_dual_loss,
    fake=_empty_results,
    check=_check,
)
register_losses("linear_dual_loss", differentiable=1, per_row=False)
