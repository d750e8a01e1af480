"""The dual loss of logits that are never stored, where features are trained and the head over them is frozen."""

from typing import Any

import torch
from torch import Tensor

from prograd_fast.ops.checks import (
    Arguments,
    check_devices,
    check_fixed,
    check_label_range,
    check_matrix,
    check_positive,
    check_reduction_number,
)
from prograd_fast.ops.common import REDUCTIONS, Reduction, accumulation_dtype
from prograd_fast.ops.dual_loss import General, check_loss_options, check_row_tensors, dual_loss_formula
from prograd_fast.ops.losses import define_loss, losses_of
from prograd_fast.ops.row_chunks import multiplies_as_stored, multiply, row_chunks

IGNORED = -100  # the label of a row that does not count, in PyTorch's losses and in Hugging Face's collators

# A matrix of logits of one chunk takes at most this much; with the teacher's and the cotangents four times.
CHUNK_BYTES = 64 << 20

_NONE, _MEAN = REDUCTIONS.index("none"), REDUCTIONS.index("mean")

# ---- formula


def head_dual_loss_formula(
    student_features: Tensor,
    teacher_features: Tensor,
    head: Tensor,
    labels: Tensor,
    temperature: float = 1.0,
    general: General = "kl",
    *,
    bias: Tensor | None = None,
    reduction: Reduction = "mean",
) -> tuple[Tensor, Tensor]:
    """`dual_loss` of the logits that one head gives: z = X Wᵀ + c for the student's features X and the teacher's.

    Arguments and results are those of `head_dual_loss`, for any float dtype. Nothing is checked.
    """
    dtype = accumulation_dtype(student_features, teacher_features, head)
    kept = labels != IGNORED
    shift = None if bias is None else bias.to(dtype)
    student, teacher = (
        torch.nn.functional.linear(x.to(dtype).masked_fill(~kept.unsqueeze(1), 0), head.to(dtype), shift)
        for x in (student_features, teacher_features)
    )
    by_row = dual_loss_formula(student, teacher, labels.where(kept, 0), temperature, general, reduction="none")
    task, other = (losses.where(kept, 0) for losses in by_row)
    if reduction == "none":
        return task, other
    count = kept.sum().clamp(min=1) if reduction == "mean" else 1
    return task.sum() / count, other.sum() / count


# ---- operator
#
# student, teacher (B, D), head (C, D), labels (B,), bias (C,) or None; losses (2,), or (2, B) for reduction 0 (none);
# cotangents (2, B, D) in the student's features. One code for every device: products of PyTorch around the operator
# `dual_loss_out`, whose kernels are a backend's.


def _check(call: dict[str, Any]) -> None:
    arguments = Arguments(call["student"])
    rows, width = arguments.sizes("student", call["student"], "rows, width")
    arguments.floating("teacher", call["teacher"], (rows, width))
    classes, _ = arguments.sizes("head", call["head"], "classes, width")
    arguments.floating("head", call["head"], (classes, width))
    if rows and not classes:
        raise ValueError("head: expected at least one class, got none.")
    arguments.integers("labels", call["labels"], (rows,))
    arguments.floating("bias", call["bias"], (classes,))
    check_positive("temperature", call["temperature"])
    reduction = check_reduction_number(call["reduction"])
    arguments.result("losses", call.get("losses"), (2, rows) if reduction == "none" else (2,))
    arguments.result("cotangents", call.get("cotangents"), (2, rows, width))


@torch.no_grad()
def _kernel(
    student: Tensor,
    teacher: Tensor,
    head: Tensor,
    labels: Tensor,
    bias: Tensor | None,
    temperature: float,
    soft_ce: bool,
    reduction: int,
    *,
    losses: Tensor,
    cotangents: Tensor,
) -> None:
    common = torch.promote_types(torch.promote_types(student.dtype, teacher.dtype), head.dtype)
    wide = torch.promote_types(common, torch.float32)
    dtype = common if multiplies_as_stored(student.device, common) else wide
    head, (rows, width), classes = head.to(dtype), student.shape, len(head)
    ignored = labels == IGNORED
    labels, weight = labels.masked_fill(ignored, 0), (~ignored).to(wide)
    chunks = list(row_chunks(rows, classes * wide.itemsize, CHUNK_BYTES))
    size = 2 * chunks[0].stop  # rows of both kinds of logits in a chunk
    room = [student.new_empty(size, n, dtype=d) for n, d in ((classes, wide), (classes, dtype), (width, wide))]
    by_row, unused = losses.new_empty(2, rows, dtype=wide), labels.new_empty(())
    for chunk in chunks:
        n = chunk.stop - chunk.start
        logits, by_logit, by_feature = (memory[: 2 * n].unflatten(0, (2, n)) for memory in room)
        for features, product in zip((student, teacher), logits, strict=True):
            if bias is not None:
                product.copy_(bias.expand(n, classes))
            # what stands in a row of padding may be anything, also NaN
            x = features[chunk].to(dtype).masked_fill(ignored[chunk].unsqueeze(1), 0)
            multiply(x, head.mT, product, 0.0 if bias is None else 1.0, 1.0)
        torch.ops.prograd_fast.dual_loss_out(
            *(*logits, labels[chunk], None, weight[chunk], weight[chunk], temperature, soft_ce, _NONE),
            losses=by_row[:, chunk],
            cotangents=by_logit,
            correct=unused,
        )
        multiply(by_logit.flatten(0, 1), head, by_feature.flatten(0, 1), 0.0, 1.0)
        cotangents[:, chunk] = by_feature
    if reduction == _NONE:
        losses.copy_(by_row)
        return
    count = weight.sum().clamp(min=1) if reduction == _MEAN else weight.new_ones(())
    losses.copy_(by_row.sum(1) / count)
    if reduction == _MEAN:
        cotangents.div_(count)


def _formula(
    student: Tensor,
    teacher: Tensor,
    head: Tensor,
    labels: Tensor,
    bias: Tensor | None,
    temperature: float,
    soft_ce: bool,
    reduction: int,
) -> tuple[Tensor, Tensor]:
    general: General = "soft_ce" if soft_ce else "kl"
    options = (temperature, general)
    return head_dual_loss_formula(student, teacher, head, labels, *options, bias=bias, reduction=REDUCTIONS[reduction])


def _empty(student: Tensor, teacher: Tensor, head: Tensor, *others: Any) -> tuple[Tensor, ...]:
    rows = student.shape[:1] if REDUCTIONS[others[-1]] == "none" else ()
    losses = student.new_empty((2, *rows), dtype=accumulation_dtype(student, teacher, head))
    return losses, student.new_empty((2, *student.shape), dtype=accumulation_dtype(student))


define_loss(
    "head_dual_loss",
    "Tensor student, Tensor teacher, Tensor head, Tensor labels, Tensor? bias, "
    "float temperature, bool soft_ce, int reduction",
    ("losses", "cotangents"),
    "Tensor task, Tensor general, Tensor cotangents",
    kernel=_kernel,
    empty=_empty,
    formula=_formula,
    check=_check,
    differentiable=0,
    per_row=True,
)


# ---- function


def head_dual_loss(
    student_features: Tensor,
    teacher_features: Tensor,
    head: Tensor,
    labels: Tensor,
    temperature: float = 1.0,
    general: General = "kl",
    *,
    bias: Tensor | None = None,
    reduction: Reduction = "mean",
) -> tuple[Tensor, Tensor]:
    """`dual_loss` of the logits X Wᵀ of both kinds of features X, without ever storing B x C of them.

    The counterpart of `linear_dual_loss`: there class features are trained, here it is the features, and the head W
    that student and teacher share is frozen, as when a language model is fine-tuned to a vocabulary of 100,000 words.
    The forward forms both gradients, (2, B, D), and a backward multiplies one of them: two backwards, for the task and
    the general gradient, cost no product more. Losses that are fused to save logits form the gradient of one sum
    (Liger-Kernel, arXiv:2410.10989), from which the two cannot be told apart.

    Differentiable in the student's features alone. The kernels have the first derivative, further ones go through the
    formula, `prograd_fast.reference.head_dual_loss`, which stores the logits.

    Of a chunk of rows the logits are stored, 64 MiB of each kind at most, or one row. Precision is that of
    `linear_dual_loss` on a GPU; on a CPU a 16-bit head is converted to float32, which takes twice its memory.

    Args:
        student_features: X, (B, D), such as the last hidden states of a language model, tokens in rows; float64,
            float32, bfloat16 or float16.
        teacher_features: (B, D), of the model that is not to be forgotten; fixed.
        head: W, (C, D), such as `lm_head.weight`; fixed.
        labels: (B,) integers in 0 ... C - 1, or -100 for a row that does not count, whatever its features are. It costs
            as much as another: to leave it out would wait for a GPU.
        temperature: as in `dual_loss`.
        general: as in `dual_loss`.
        bias: (C,), added to the logits of both; fixed (default: None, 0).
        reduction: "mean" (default) divides the sum over the rows by the number of those that count, and is 0 without
            any; "sum"; "none", with 0 for rows that do not count.

    Returns:
        (task, general): float32 or wider, 0-d, or (B,) with "none".

    Raises:
        TypeError: features or head are not floating point, or labels are not integers.
        ValueError: shapes or devices do not fit, an option is unknown, something other than the student's features
            requires grad, or (on a CPU) a label is out of range.
    """
    check_loss_options(temperature, general, reduction)
    _check_tensors(student_features, teacher_features, head, labels, bias)
    try:
        task, other, *_ = losses_of(
            "head_dual_loss",
            *(student_features, teacher_features, head, labels.long(), bias),
            *(temperature, general == "soft_ce", REDUCTIONS.index(reduction)),
        )
    except (ValueError, IndexError, RuntimeError) as error:
        check_label_range(error, labels.masked_fill(labels == IGNORED, 0), head, 0)
        raise
    return task, other


def _check_tensors(
    student_features: Tensor, teacher_features: Tensor, head: Tensor, labels: Tensor, bias: Tensor | None
) -> None:
    check_matrix("student_features", student_features, "(rows, width)")
    check_matrix("teacher_features", teacher_features, "(rows, width)")
    check_matrix("head", head, "(classes, width)")
    rows, width = student_features.shape
    if teacher_features.shape != student_features.shape:
        raise ValueError(
            f"teacher_features: expected the student's shape {(rows, width)}, got {tuple(teacher_features.shape)}. "
            "Give both models the same inputs."
        )
    if head.shape[1] != width:
        raise ValueError(
            f"head: expected the width of the features, {width}, got {head.shape[1]}. Take both from the same model."
        )
    check_fixed("teacher_features", teacher_features)
    check_fixed("head", head)
    check_row_tensors(labels, rows, len(head))
    if bias is not None and bias.shape != head.shape[:1]:
        raise ValueError(f"bias: expected shape ({len(head)},), one number for each class, got {tuple(bias.shape)}.")
    check_fixed("bias", bias)
    tensors = {"student_features": student_features, "teacher_features": teacher_features, "head": head}
    check_devices(**tensors, labels=labels, bias=bias)
