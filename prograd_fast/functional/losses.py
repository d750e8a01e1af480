"""Losses of logits and of the features that give them: the dual loss, and LASP's text-to-text loss."""

import torch
from torch import Tensor

from prograd_fast.backends import cpu
from prograd_fast.checks import (
    check_dual_loss,
    check_label_range,
    check_linear_dual_loss,
    check_loss_options,
    check_text_to_text_loss,
)
from prograd_fast.reference.losses import REDUCTIONS, General, Reduction


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

    Differentiable once, in the student's logits alone. Source: arXiv:2205.14865; offset and weights: arXiv:2112.14380.

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
    tensors = (student_logits, teacher_logits, labels, teacher_offset, task_weight, general_weight)
    options = (temperature, general == "soft_ce", REDUCTIONS.index(reduction))
    try:
        if cpu.EXTENSION is not None and not torch.compiler.is_compiling():
            losses: tuple[Tensor, Tensor] | None = cpu.EXTENSION.dual_loss(*tensors, *options)
            if losses is not None:  # which they are for plain tensors that fit together
                return losses
        check_dual_loss(*tensors)
        task, other, _, _ = torch.ops.prograd_fast.dual_loss(
            student_logits, teacher_logits, labels.long(), *tensors[3:], *options
        )
    except (ValueError, IndexError, RuntimeError) as error:
        check_label_range(error, labels, student_logits, 1)
        raise
    return task, other


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

    Differentiable once, in the student's class features alone, and not with reduction "none".

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
    tensors = (features, student_classes, teacher_classes, labels, teacher_offset, task_weight, general_weight)
    check_linear_dual_loss(*tensors)
    options = (scale, temperature, general == "soft_ce", REDUCTIONS.index(reduction))
    try:
        task, other, _, _ = torch.ops.prograd_fast.linear_dual_loss(*tensors[:3], labels.long(), *tensors[4:], *options)
    except (ValueError, IndexError, RuntimeError) as error:
        check_label_range(error, labels, student_classes, 0)
        raise
    return task, other


def text_to_text_loss(class_features: Tensor, template_features: Tensor, scale: float) -> Tensor:
    """Text-to-text cross-entropy of LASP, without ever storing L x K x K logits.

    The hand-written sentences are the samples, the learned prompts the class weights: each sentence's logits are
    s ⟨u_i, h_lj⟩ over i, its label is j; mean over the L·K sentences. Extra memory is that of a block of sentences, or
    of a few numbers for each (GPU). Source: arXiv:2210.01115; formula: `prograd_fast.reference.text_to_text_loss`.

    Differentiable once, in the class features alone.

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
    check_text_to_text_loss(class_features, template_features)
    templates, classes, width = template_features.shape
    labels = torch.arange(classes, device=class_features.device).repeat(templates)
    rows = template_features.reshape(templates * classes, width)
    loss, _ = torch.ops.prograd_fast.linear_cross_entropy(rows, class_features, labels, scale)
    return loss
