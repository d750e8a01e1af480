"""The dual loss: cross-entropy to the labels, and distance to the zero-shot teacher, from one pair of logits."""

from typing import Any, Literal, get_args

import torch
from torch import Tensor

from prograd_fast.ops.checks import (
    Arguments,
    check_devices,
    check_fixed,
    check_label_range,
    check_labels,
    check_matrix,
    check_positive,
    check_reduction,
    check_reduction_number,
)
from prograd_fast.ops.common import REDUCTIONS, Reduction, accumulation_dtype, reduced
from prograd_fast.ops.losses import define_loss, goes_through_formula, losses_of
from prograd_fast.ops.registry import SHORTCUTS

General = Literal["kl", "soft_ce"]
GENERAL_LOSSES: tuple[str, ...] = get_args(General)


# ---- formula


def dual_loss_formula(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    temperature: float = 1.0,
    general: General = "kl",
    *,
    teacher_offset: Tensor | None = None,
    task_weight: Tensor | None = None,
    general_weight: Tensor | None = None,
    reduction: Reduction = "mean",
) -> tuple[Tensor, Tensor]:
    """Task loss and general loss of ProGrad.

    With student logits z, teacher logits t, offset o, labels y, p = softmax(z/T), q = softmax((t + o)/T), for each row:

        task    = w · -log softmax(z)[y]
        general = w' · T² Σ_c q_c (log q_c - log p_c)      "kl", KL(q‖p)
                = w' · -T² Σ_c q_c log p_c                 "soft_ce", the same plus the teacher's entropy

    Both general losses have the gradient w' T (p - q) in z. A class that the teacher excludes (t = -inf) adds nothing.

    Source: Zhu et al., Prompt-aligned Gradient for Prompt Tuning (arXiv:2205.14865); the authors' `ProGradLoss`
    reports "soft_ce". The offset and the weights are those of Zhu et al., Cross-Domain Empirical Risk Minimization
    (xERM, arXiv:2112.14380): log π_test - log π_train, and one factor per row.

    Arguments and results are those of `dual_loss`, for any float dtype. Nothing is checked.
    """
    z, t = _logits(student_logits, teacher_logits, teacher_offset)
    task = -z.log_softmax(dim=1).gather(1, labels.unsqueeze(1)).squeeze(1)

    log_p = (z / temperature).log_softmax(dim=1)
    log_q = (t / temperature).log_softmax(dim=1)
    q = log_q.exp()
    pointwise = q * (log_q - log_p) if general == "kl" else -q * log_p
    # 0 · log 0 = 0: an excluded class would otherwise make 0 · (-inf) = NaN
    distance = temperature * temperature * pointwise.where(q != 0, 0.0).sum(dim=1)
    return reduced(task, task_weight, reduction), reduced(distance, general_weight, reduction)


def dual_loss_cotangents(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    temperature: float = 1.0,
    *,
    teacher_offset: Tensor | None = None,
    task_weight: Tensor | None = None,
    general_weight: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """The gradients of both losses in the student's logits, (2, B, C) in the accumulation dtype, in closed form.

    d task / dz = w (softmax(z) - onehot(y)),  d general / dz = w' T (p - q);  both over B for "mean"
    """
    z, t = _logits(student_logits, teacher_logits, teacher_offset)
    one_hot = torch.arange(z.shape[1], device=z.device) == labels.unsqueeze(1)
    task = z.softmax(dim=1) - one_hot.to(z.dtype)
    general = temperature * ((z / temperature).softmax(dim=1) - (t / temperature).softmax(dim=1))
    rows = []
    for cotangent, weight in ((task, task_weight), (general, general_weight)):
        weighted = cotangent if weight is None else cotangent * weight.to(z.dtype).unsqueeze(1)
        rows.append(weighted / z.shape[0] if reduction == "mean" else weighted)
    return torch.stack(rows)


def count_correct(student_logits: Tensor, labels: Tensor) -> Tensor:
    """Count the rows whose largest logit is at the label, 0-d int64; the lowest class wins a tie."""
    classes = torch.arange(student_logits.shape[1], device=student_logits.device)
    largest = student_logits == student_logits.amax(dim=1, keepdim=True)
    # argmax does not promise which of several maxima it names
    first = classes.where(largest, student_logits.shape[1]).amin(dim=1)
    return (first == labels).sum()


def _logits(student_logits: Tensor, teacher_logits: Tensor, teacher_offset: Tensor | None) -> tuple[Tensor, Tensor]:
    dtype = accumulation_dtype(student_logits, teacher_logits)
    z, t = student_logits.to(dtype), teacher_logits.to(dtype)
    return z, t if teacher_offset is None else t + teacher_offset.to(dtype)


# ---- operator
#
# losses (2,), or (2, B) for reduction 0 (none); cotangents (2, B, C) in the student's accumulation
# dtype, with weights and 1/B; correct () int64. reduction: 0 none, 1 mean, 2 sum.

ROW_INPUTS = "Tensor labels, Tensor? teacher_offset, Tensor? task_weight, Tensor? general_weight"
OPTIONS = "float temperature, bool soft_ce, int reduction"
RETURNS = "Tensor task, Tensor general, Tensor cotangents, Tensor correct"


def formula_options(
    teacher_offset: Tensor | None,
    task_weight: Tensor | None,
    general_weight: Tensor | None,
    temperature: float,
    soft_ce: bool,
    reduction: int,
) -> dict[str, Any]:
    """The formula's options, from the operators'."""
    return {
        "temperature": temperature,
        "general": "soft_ce" if soft_ce else "kl",
        "teacher_offset": teacher_offset,
        "task_weight": task_weight,
        "general_weight": general_weight,
        "reduction": REDUCTIONS[reduction],
    }


def check_rows(arguments: Arguments, call: dict[str, Any], rows: int, classes: int) -> None:
    """Refuse tensors that do not belong to the rows and classes, for both dual losses."""
    if rows and not classes:
        raise ValueError("classes: expected at least one, got none.")
    arguments.integers("labels", call["labels"], (rows,))
    arguments.floating("teacher_offset", call["teacher_offset"], (classes,))
    arguments.floating("task_weight", call["task_weight"], (rows,))
    arguments.floating("general_weight", call["general_weight"], (rows,))
    check_positive("temperature", call["temperature"])
    reduction = check_reduction_number(call["reduction"])
    arguments.result("losses", call.get("losses"), (2, rows) if reduction == "none" else (2,))
    arguments.integer_result("correct", call.get("correct"), ())


def write_losses(
    student: Tensor, teacher: Tensor, labels: Tensor, options: dict[str, Any], losses: Tensor, correct: Tensor
) -> Tensor:
    """Write what both dual losses have in common; returns the cotangents in the student's logits."""
    losses.copy_(torch.stack(dual_loss_formula(student, teacher, labels, **options)))
    correct.copy_(count_correct(student, labels))
    del options["general"]  # both have the same gradient
    return dual_loss_cotangents(student, teacher, labels, **options)


def empty_results(first: Tensor, second: Tensor, like: Tensor, reduction: int) -> tuple[Tensor, Tensor, Tensor]:
    """Losses of the rows of `first`, cotangents in `like` and the count, without their contents."""
    rows = first.shape[:1] if REDUCTIONS[reduction] == "none" else ()
    losses = first.new_empty((2, *rows), dtype=accumulation_dtype(first, second))
    cotangents = like.new_empty((2, *like.shape), dtype=accumulation_dtype(like))
    return losses, cotangents, first.new_empty((), dtype=torch.int64)


def _check(call: dict[str, Any]) -> None:
    arguments = Arguments(call["student"])
    rows, classes = arguments.sizes("student", call["student"], "rows, classes")
    arguments.floating("teacher", call["teacher"], (rows, classes))
    check_rows(arguments, call, rows, classes)
    arguments.result("cotangents", call.get("cotangents"), (2, rows, classes))


def _kernel(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    *options: Any,
    losses: Tensor,
    cotangents: Tensor,
    correct: Tensor,
) -> None:
    cotangents.copy_(write_losses(student, teacher, labels, formula_options(*options), losses, correct))


def _formula(student: Tensor, teacher: Tensor, labels: Tensor, *options: Any) -> tuple[Tensor, Tensor]:
    return dual_loss_formula(student, teacher, labels, **formula_options(*options))


def _empty(student: Tensor, teacher: Tensor, *options: Any) -> tuple[Tensor, ...]:
    return empty_results(student, teacher, student, options[-1])


define_loss(
    "dual_loss",
    f"Tensor student, Tensor teacher, {ROW_INPUTS}, {OPTIONS}",
    ("losses", "cotangents", "correct"),
    RETURNS,
    kernel=_kernel,
    empty=_empty,
    formula=_formula,
    check=_check,
    differentiable=0,
    per_row=True,
)


# ---- function


def dual_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    temperature: float = 1.0,
    general: General = "kl",
    *,
    teacher_offset: Tensor | None = None,
    task_weight: Tensor | None = None,
    general_weight: Tensor | None = None,
    reduction: Reduction = "mean",
) -> tuple[Tensor, Tensor]:
    """Task loss and general loss of ProGrad, and the gradients of both, in one pass over the logits.

    With student logits z, teacher logits t, offset o, labels y, p = softmax(z/T), q = softmax((t + o)/T), for each row:

        task    = w · -log softmax(z)[y]
        general = w' · T² Σ_c q_c (log q_c - log p_c)      "kl"
                = w' · -T² Σ_c q_c log p_c                 "soft_ce", the authors' value; same gradient

    Differentiable in the student's logits alone: the kernels have the first derivative, further ones go through the
    formula, `prograd_fast.reference.dual_loss`. No argument may be changed in place before the backward, as with
    PyTorch's losses. Source: arXiv:2205.14865; offset and weights: arXiv:2112.14380.

    Args:
        student_logits: (B, C), float64, float32, bfloat16 or float16; the arithmetic is float32 or wider.
        teacher_logits: (B, C), same device; must not require grad. -inf excludes a class.
        labels: (B,) integers in 0 ... C - 1.
        temperature: T > 0, of the general loss only (default: 1.0).
        general: "kl" (default) or "soft_ce".
        teacher_offset: o, (C,), added to every row of the teacher's logits (default: None, 0).
        task_weight: w, (B,), a factor per row (default: None, 1).
        general_weight: w', (B,), a factor per row (default: None, 1).
        reduction: "mean" (default) divides the sum over the rows by B, whatever the weights; "sum"; "none".

    Returns:
        (task, general): float32 or wider, 0-d, or (B,) with "none".

    Raises:
        TypeError: logits are not floating point, or labels are not integers.
        ValueError: shapes or devices do not fit, an option is unknown, something other than the student's logits
            requires grad, or (on a CPU) a label is out of range.
    """
    check_loss_options(temperature, general, reduction)
    rows = (labels, teacher_offset, task_weight, general_weight)
    options = (temperature, general == "soft_ce", REDUCTIONS.index(reduction))
    task, other, _ = dual_loss_and_count(student_logits, teacher_logits, rows, options)
    return task, other


def dual_loss_and_count(
    student_logits: Tensor,
    teacher_logits: Tensor,
    rows: tuple[Tensor, Tensor | None, Tensor | None, Tensor | None],
    options: tuple[float, bool, int],
) -> tuple[Tensor, Tensor, Tensor]:
    """The losses of `dual_loss`, and the number of rows whose largest logit is at the label: 0-d int64, on the device.

    Args:
        student_logits: see `dual_loss`.
        teacher_logits: see `dual_loss`.
        rows: labels, teacher_offset, task_weight and general_weight.
        options: the operator's temperature, soft_ce and reduction.
    """
    labels, *others = rows
    try:
        shortcut = SHORTCUTS.get("dual_loss")
        if shortcut is not None and not torch.compiler.is_compiling() and not goes_through_formula():
            results: tuple[Tensor, Tensor, Tensor] | None = shortcut(student_logits, teacher_logits, *rows, *options)
            if results is not None:  # which they are for plain tensors that fit together
                return results
        check_dual_loss(student_logits, teacher_logits, *rows)
        task, general, *rest = losses_of("dual_loss", student_logits, teacher_logits, labels.long(), *others, *options)
        correct = rest[1] if rest else count_correct(student_logits, labels)
    except (ValueError, IndexError, RuntimeError) as error:
        check_label_range(error, labels, student_logits, 1)
        raise
    return task, general, correct


def check_dual_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    teacher_offset: Tensor | None,
    task_weight: Tensor | None,
    general_weight: Tensor | None,
) -> None:
    """Raise TypeError or ValueError for tensors that `dual_loss` has no result for."""
    check_matrix("student_logits", student_logits, "(batch, classes)")
    check_matrix("teacher_logits", teacher_logits, "(batch, classes)")
    if teacher_logits.shape != student_logits.shape:
        raise ValueError(
            f"teacher_logits: expected the student's shape {tuple(student_logits.shape)}, got "
            f"{tuple(teacher_logits.shape)}. Build the teacher with the same class names."
        )
    check_fixed("teacher_logits", teacher_logits)
    weights = {"teacher_offset": teacher_offset, "task_weight": task_weight, "general_weight": general_weight}
    rows, classes = student_logits.shape
    check_row_tensors(labels, rows, classes, **weights)
    check_devices(student_logits=student_logits, teacher_logits=teacher_logits, labels=labels, **weights)


def check_row_tensors(labels: Tensor, rows: int, classes: int, **weights: Tensor | None) -> None:
    """Raise TypeError or ValueError for labels, offset or weights that do not belong to the rows and classes."""
    check_labels(labels, rows)
    for name, tensor in weights.items():
        size = classes if name == "teacher_offset" else rows
        if tensor is not None and tensor.shape != (size,):
            raise ValueError(f"{name}: expected shape ({size},), got {tuple(tensor.shape)}.")
        check_fixed(name, tensor)


def check_loss_options(temperature: float, general: str, reduction: str) -> None:
    """Raise TypeError or ValueError for options that no dual loss has."""
    if isinstance(temperature, bool) or not isinstance(temperature, (int, float)):
        raise TypeError(f"temperature: expected a number, got {type(temperature).__name__}. Use 1.0 as the authors do.")
    if not 0 < temperature < float("inf"):
        raise ValueError(f"temperature: expected a number above 0, got {temperature!r}. Use 1.0 as the authors do.")
    if general not in GENERAL_LOSSES:
        raise ValueError(f"general: expected one of {', '.join(GENERAL_LOSSES)}, got {general!r}.")
    check_reduction(reduction)
