"""`dual_loss`: both losses of a batch of logits, and the gradients of both, in one operator."""

from typing import Any

import torch
from torch import Tensor

from prograd_fast.ops.checks import Arguments, check_positive, check_reduction
from prograd_fast.ops.gradients import register_losses
from prograd_fast.ops.registry import define
from prograd_fast.reference import losses as reference

INPUTS = (
    "Tensor student, Tensor teacher, Tensor labels, Tensor? teacher_offset, Tensor? task_weight, "
    "Tensor? general_weight, float temperature, bool soft_ce, int reduction"
)


def check_rows(arguments: Arguments, call: dict[str, Any], rows: int, classes: int) -> None:
    """What both dual losses ask of what belongs to a row or a class, and of their losses."""
    if rows and not classes:
        raise ValueError("classes: expected at least one, got none.")
    arguments.integers("labels", call["labels"], (rows,))
    arguments.floating("teacher_offset", call["teacher_offset"], (classes,))
    arguments.floating("task_weight", call["task_weight"], (rows,))
    arguments.floating("general_weight", call["general_weight"], (rows,))
    check_positive("temperature", call["temperature"])
    reduction = check_reduction(call["reduction"])
    arguments.result("losses", call.get("losses"), (2, rows) if reduction == "none" else (2,))
    arguments.count("correct", call.get("correct"))


def _check(call: dict[str, Any]) -> None:
    arguments = Arguments(call["student"])
    rows, classes = arguments.sizes("student", call["student"], "rows, classes")
    arguments.floating("teacher", call["teacher"], (rows, classes))
    check_rows(arguments, call, rows, classes)
    arguments.result("cotangents", call.get("cotangents"), (2, rows, classes))


def _dual_loss_out(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    teacher_offset: Tensor | None,
    task_weight: Tensor | None,
    general_weight: Tensor | None,
    temperature: float,
    soft_ce: bool,
    reduction: int,
    *,
    losses: Tensor,
    cotangents: Tensor,
    correct: Tensor,
) -> None:
    options: dict[str, Any] = {
        "teacher_offset": teacher_offset,
        "task_weight": task_weight,
        "general_weight": general_weight,
        "reduction": reference.REDUCTIONS[reduction],
    }
    general: reference.General = "soft_ce" if soft_ce else "kl"
    losses.copy_(torch.stack(reference.dual_loss(student, teacher, labels, temperature, general, **options)))
    cotangents.copy_(reference.dual_loss_cotangents(student, teacher, labels, temperature, **options))
    correct.copy_(reference.count_correct(student, labels))


def _empty_results(student: Tensor, teacher: Tensor, *options: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rows = student.shape[:1] if reference.REDUCTIONS[options[-1]] == "none" else ()
    task, general = (student.new_empty(rows, dtype=reference.accumulation_dtype(student, teacher)) for _ in range(2))
    return task, general, student.new_empty((2, *student.shape)), student.new_empty((), dtype=torch.int64)


def _dual_loss(student: Tensor, teacher: Tensor, *options: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    task, _, cotangents, correct = _empty_results(student, teacher, *options)
    losses = task.new_empty((2, *task.shape))
    torch.ops.prograd_fast.dual_loss_out(
        student, teacher, *options, losses=losses, cotangents=cotangents, correct=correct
    )
    return losses[0].clone(), losses[1].clone(), cotangents, correct  # results of an operator share no memory


define(
    f"dual_loss_out({INPUTS}, *, Tensor(a!) losses, Tensor(b!) cotangents, Tensor(c!) correct) -> ()",
    reference=_dual_loss_out,
    check=_check,
)
define(
    f"dual_loss({INPUTS}) -> (Tensor task, Tensor general, Tensor cotangents, Tensor correct)",
    reference=_dual_loss,
    fake=_empty_results,
    check=_check,
)
register_losses("dual_loss", differentiable=0, per_row=True)
