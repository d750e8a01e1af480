"""The dual loss of logits that are never stored, features times class features; and its task half alone."""

from typing import Any

import torch
from torch import Tensor

from prograd_fast.ops.checks import (
    Arguments,
    check_devices,
    check_fixed,
    check_floating,
    check_label_range,
    check_matrix,
)
from prograd_fast.ops.common import REDUCTIONS, Reduction, accumulation_dtype
from prograd_fast.ops.dual_loss import (
    OPTIONS,
    RETURNS,
    ROW_INPUTS,
    General,
    check_loss_options,
    check_row_tensors,
    check_rows,
    count_correct,
    dual_loss_cotangents,
    dual_loss_formula,
    empty_results,
    formula_options,
    write_losses,
)
from prograd_fast.ops.losses import define_loss, losses_of

# ---- formulas


def linear_logits(features: Tensor, classes: Tensor, scale: float) -> Tensor:
    """The logits, scale · features @ classesᵀ: (B, D) and (C, D) give (B, C) in the accumulation dtype."""
    dtype = accumulation_dtype(features, classes)
    return scale * (features.to(dtype) @ classes.to(dtype).T)


def linear_dual_loss_formula(
    features: Tensor,
    student_classes: Tensor,
    teacher_classes: Tensor,
    labels: Tensor,
    scale: float,
    *args: Any,
    **options: Any,
) -> tuple[Tensor, Tensor]:
    """`dual_loss` of the logits that class features give: z = scale · X Wᵀ for the student's W and the teacher's.

    Arguments and results are those of `linear_dual_loss`, for any float dtype. Nothing is checked.
    """
    student = linear_logits(features, student_classes, scale)
    return dual_loss_formula(student, linear_logits(features, teacher_classes, scale), labels, *args, **options)


def text_to_text_loss_formula(class_features: Tensor, template_features: Tensor, scale: float) -> Tensor:
    """Text-to-text cross-entropy of LASP: which learned prompt belongs to a hand-written sentence?

        S[l,i,j] = s ⟨u_i, h_lj⟩,  loss = -1/(L K) Σ_l Σ_j log ( exp S[l,j,j] / Σ_i exp S[l,i,j] )

    The sentence is the sample and the learned prompts are the class weights: the softmax goes over i, as in the
    authors' code (their README has it the other way round). Source: Bulat and Tzimiropoulos, LASP (arXiv:2210.01115);
    `1adrianb/lasp`, prompting/losses.py. Arguments and result are those of `text_to_text_loss`.
    """
    dtype = accumulation_dtype(class_features, template_features)
    logits = scale * torch.einsum("id,ljd->lij", class_features.to(dtype), template_features.to(dtype))
    return -logits.log_softmax(dim=1).diagonal(dim1=1, dim2=2).mean()


# ---- operators
#
# linear_dual_loss      results as dual_loss; cotangents (2, C, D) in the student's class features, of the sum over the
#                       rows for reduction 0 (none)
# linear_cross_entropy  loss () of the logits scale · X Wᵀ, mean over the rows; cotangents (C, D) in W


def _check_features(call: dict[str, Any], name: str) -> tuple[Arguments, int, int, int]:
    arguments = Arguments(call["features"])
    rows, width = arguments.sizes("features", call["features"], "rows, width")
    classes, _ = arguments.sizes(name, call[name], "classes, width")
    arguments.floating(name, call[name], (classes, width))
    return arguments, rows, classes, width


def _check_dual(call: dict[str, Any]) -> None:
    arguments, rows, classes, width = _check_features(call, "student_classes")
    arguments.floating("teacher_classes", call["teacher_classes"], (classes, width))
    check_rows(arguments, call, rows, classes)
    arguments.result("cotangents", call.get("cotangents"), (2, classes, width))


def _dual_kernel(
    features: Tensor,
    student_classes: Tensor,
    teacher_classes: Tensor,
    labels: Tensor,
    offset: Tensor | None,
    task_weight: Tensor | None,
    general_weight: Tensor | None,
    scale: float,
    *options: Any,
    losses: Tensor,
    cotangents: Tensor,
    correct: Tensor,
) -> None:
    student, teacher = (linear_logits(features, classes, scale) for classes in (student_classes, teacher_classes))
    named = formula_options(offset, task_weight, general_weight, *options)
    by_logit = write_losses(student, teacher, labels, named, losses, correct)
    cotangents.copy_(scale * (by_logit.mT @ features.to(by_logit.dtype)))


def _dual_formula(
    features: Tensor,
    student_classes: Tensor,
    teacher_classes: Tensor,
    labels: Tensor,
    offset: Tensor | None,
    task_weight: Tensor | None,
    general_weight: Tensor | None,
    scale: float,
    *options: Any,
) -> tuple[Tensor, Tensor]:
    named = formula_options(offset, task_weight, general_weight, *options)
    return linear_dual_loss_formula(features, student_classes, teacher_classes, labels, scale, **named)


def _dual_empty(features: Tensor, student_classes: Tensor, *others: Any) -> tuple[Tensor, ...]:
    return empty_results(features, student_classes, student_classes, others[-1])


define_loss(
    "linear_dual_loss",
    f"Tensor features, Tensor student_classes, Tensor teacher_classes, {ROW_INPUTS}, float scale, {OPTIONS}",
    ("losses", "cotangents", "correct"),
    RETURNS,
    kernel=_dual_kernel,
    empty=_dual_empty,
    formula=_dual_formula,
    check=_check_dual,
    differentiable=1,
    per_row=False,
)


def _check_cross_entropy(call: dict[str, Any]) -> None:
    arguments, rows, classes, width = _check_features(call, "classes")
    if rows and not classes:
        raise ValueError("classes: expected at least one, got none.")
    arguments.integers("labels", call["labels"], (rows,))
    arguments.result("loss", call.get("loss"), ())
    arguments.result("cotangents", call.get("cotangents"), (classes, width))


def _cross_entropy_formula(features: Tensor, classes: Tensor, labels: Tensor, scale: float) -> Tensor:
    return torch.nn.functional.cross_entropy(linear_logits(features, classes, scale), labels)


def _cross_entropy_kernel(
    features: Tensor, classes: Tensor, labels: Tensor, scale: float, *, loss: Tensor, cotangents: Tensor
) -> None:
    logits = linear_logits(features, classes, scale)
    loss.copy_(torch.nn.functional.cross_entropy(logits, labels))
    by_logit = dual_loss_cotangents(logits, logits, labels)[0]
    cotangents.copy_(scale * (by_logit.mT @ features.to(by_logit.dtype)))


def _cross_entropy_empty(features: Tensor, classes: Tensor, labels: Tensor, scale: float) -> tuple[Tensor, ...]:
    loss = features.new_empty((), dtype=accumulation_dtype(features, classes))
    return loss, classes.new_empty(classes.shape, dtype=accumulation_dtype(classes))


define_loss(
    "linear_cross_entropy",
    "Tensor features, Tensor classes, Tensor labels, float scale",
    ("loss", "cotangents"),
    "Tensor loss, Tensor cotangents",
    kernel=_cross_entropy_kernel,
    empty=_cross_entropy_empty,
    formula=_cross_entropy_formula,
    check=_check_cross_entropy,
    differentiable=1,
    per_row=False,
)


# ---- functions


def linear_dual_loss(
    features: Tensor,
    student_classes: Tensor,
    teacher_classes: Tensor,
    labels: Tensor,
    scale: float,
    temperature: float = 1.0,
    general: General = "kl",
    *,
    teacher_offset: Tensor | None = None,
    task_weight: Tensor | None = None,
    general_weight: Tensor | None = None,
    reduction: Reduction = "mean",
) -> tuple[Tensor, Tensor]:
    """`dual_loss` of the logits scale · X Wᵀ of both class matrices W, without ever storing B x C of them.

    Differentiable in the student's class features alone, and not with reduction "none". The kernels have the first
    derivative, further ones go through the formula, which stores the logits.

    On a GPU the logits of a chunk of rows are stored, 64 MiB of each matrix at most. float32 features are multiplied in
    float32, or in TF32 where PyTorch is told to (`torch.backends.cuda.matmul`). 16-bit ones are multiplied on tensor
    cores with float32 sums; there the cotangents of the logits are rounded to 16 bits, the losses are not.

    Args:
        features: X, (B, D) image features; fixed.
        student_classes: (C, D) class features of the student.
        teacher_classes: (C, D) class features of the teacher; fixed.
        labels: (B,) integers in 0 ... C - 1.
        scale: logit scale, exp of CLIP's `logit_scale`.
        temperature: as in `dual_loss`.
        general: as in `dual_loss`.
        teacher_offset: as in `dual_loss`.
        task_weight: as in `dual_loss`.
        general_weight: as in `dual_loss`.
        reduction: as in `dual_loss`.

    Returns:
        (task, general) as `dual_loss`.

    Raises:
        TypeError, ValueError: as `dual_loss`, named after the arguments here.
    """
    check_loss_options(temperature, general, reduction)
    rows = (labels, teacher_offset, task_weight, general_weight)
    options = (scale, temperature, general == "soft_ce", REDUCTIONS.index(reduction))
    task, other, _ = linear_dual_loss_and_count(features, student_classes, teacher_classes, rows, options)
    return task, other


def linear_dual_loss_and_count(
    features: Tensor,
    student_classes: Tensor,
    teacher_classes: Tensor,
    rows: tuple[Tensor, Tensor | None, Tensor | None, Tensor | None],
    options: tuple[float, float, bool, int],
) -> tuple[Tensor, Tensor, Tensor]:
    """The losses of `linear_dual_loss`, and the number of rows whose largest logit is at the label: 0-d int64.

    Args:
        features: see `linear_dual_loss`.
        student_classes: see `linear_dual_loss`.
        teacher_classes: see `linear_dual_loss`.
        rows: labels, teacher_offset, task_weight and general_weight.
        options: the operator's scale, temperature, soft_ce and reduction.
    """
    labels, *others = rows
    check_linear_dual_loss(features, student_classes, teacher_classes, *rows)
    try:
        arguments = (features, student_classes, teacher_classes, labels.long(), *others, *options)
        task, general, *rest = losses_of("linear_dual_loss", *arguments)
        correct = rest[1] if rest else count_correct(linear_logits(features, student_classes, options[0]), labels)
    except (ValueError, IndexError, RuntimeError) as error:
        check_label_range(error, labels, student_classes, 0)
        raise
    return task, general, correct


def check_linear_dual_loss(
    features: Tensor,
    student_classes: Tensor,
    teacher_classes: Tensor,
    labels: Tensor,
    teacher_offset: Tensor | None,
    task_weight: Tensor | None,
    general_weight: Tensor | None,
) -> None:
    """Raise TypeError or ValueError for tensors that `linear_dual_loss` has no result for."""
    matrices = {"features": features, "student_classes": student_classes, "teacher_classes": teacher_classes}
    for name, matrix in matrices.items():
        check_matrix(name, matrix, "(batch, width)" if name == "features" else "(classes, width)")
    if student_classes.shape[1] != features.shape[1]:
        raise ValueError(
            f"student_classes: expected the width of the features, {features.shape[1]}, got "
            f"{student_classes.shape[1]}. Take both from the same model."
        )
    if teacher_classes.shape != student_classes.shape:
        raise ValueError(
            f"teacher_classes: expected the student's shape {tuple(student_classes.shape)}, got "
            f"{tuple(teacher_classes.shape)}. Build the teacher with the same class names."
        )
    check_fixed("features", features)
    check_fixed("teacher_classes", teacher_classes)
    weights = {"teacher_offset": teacher_offset, "task_weight": task_weight, "general_weight": general_weight}
    check_row_tensors(labels, features.shape[0], student_classes.shape[0], **weights)
    check_devices(**matrices, labels=labels, **weights)


def text_to_text_loss(class_features: Tensor, template_features: Tensor, scale: float) -> Tensor:
    """Text-to-text cross-entropy of LASP, without ever storing L x K x K logits.

    The hand-written sentences are the samples, the learned prompts the class weights: each sentence's logits are
    s ⟨u_i, h_lj⟩ over i, its label is j; mean over the L·K sentences. Extra memory is that of a block of sentences, on
    a GPU of a chunk of them with 64 MiB of logits at most. Precision there: as `linear_dual_loss`. Source:
    arXiv:2210.01115; formula: `prograd_fast.reference.text_to_text_loss`.

    Differentiable in the class features alone. The kernels have the first derivative, further ones go through the
    formula, which stores the logits.

    Args:
        class_features: u, (K, D) features of the learned prompts, unit rows; float64, float32, bfloat16 or float16.
        template_features: h, (L, K, D) features of L templates filled with each of the K names, unit rows; fixed. Names
            without pictures (virtual classes) are classes like any other here.
        scale: s, exp of CLIP's `logit_scale`.

    Returns:
        0-d, float32 or wider.

    Raises:
        TypeError: features are not floating point.
        ValueError: shapes or devices do not fit, or the template features require grad.
    """
    check_matrix("class_features", class_features, "(classes, width)")
    check_floating("template_features", template_features)
    shape = tuple(class_features.shape)
    if template_features.dim() != 3 or template_features.shape[1:] != class_features.shape:
        raise ValueError(
            f"template_features: expected shape (templates, {shape[0]}, {shape[1]}), each template filled with each of "
            f"the names, got {tuple(template_features.shape)}."
        )
    check_fixed("template_features", template_features)
    check_devices(class_features=class_features, template_features=template_features)
    templates, classes, width = template_features.shape
    labels = torch.arange(classes, device=class_features.device).repeat(templates)
    rows = template_features.reshape(templates * classes, width)
    loss, *_ = losses_of("linear_cross_entropy", rows, class_features, labels, scale)
    return loss
