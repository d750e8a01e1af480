"""The dual loss: cross-entropy to the labels, and distance to the zero-shot teacher, from one pair of logits."""

from typing import Literal, get_args

import torch
from torch import Tensor

General = Literal["kl", "soft_ce"]
Reduction = Literal["none", "mean", "sum"]
GENERAL_LOSSES: tuple[str, ...] = get_args(General)
REDUCTIONS: tuple[str, ...] = get_args(Reduction)


def accumulation_dtype(*tensors: Tensor) -> torch.dtype:
    """Float32, or the widest dtype among the tensors where that is wider."""
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


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
    r"""Task loss and general loss of ProGrad.

    With student logits z, teacher logits t, offset o, labels y, p = softmax(z/T), q = softmax((t + o)/T), for each row:

        task    = w · -log softmax(z)[y]
        general = w' · T² Σ_c q_c (log q_c - log p_c)      "kl", KL(q‖p)
                = w' · -T² Σ_c q_c log p_c                 "soft_ce", the same plus the teacher's entropy

    Both general losses have the gradient w' T (p - q) in z. A class that the teacher excludes (t = -inf) adds nothing.

    Source: Zhu et al., Prompt-aligned Gradient for Prompt Tuning (arXiv:2205.14865); the authors' `ProGradLoss`
    reports "soft_ce". The offset and the weights are those of Zhu et al., Cross-Domain Empirical Risk Minimization
    (xERM, arXiv:2112.14380): log π_test - log π_train, and one factor per row.

    Args:
        student_logits: (B, C), any float dtype; the arithmetic is float32 or wider.
        teacher_logits: (B, C).
        labels: (B,) int64, each in 0 ... C - 1.
        temperature: T > 0, of the general loss only.
        general: "kl" or "soft_ce".
        teacher_offset: o, (C,), added to every row of the teacher's logits; None for 0.
        task_weight: w, (B,), one factor per row; None for 1.
        general_weight: w', (B,), one factor per row; None for 1.
        reduction: "mean" divides the sum over the rows by B, whatever the weights; "sum"; "none".

    Returns:
        Two tensors in the accumulation dtype, 0-d, or (B,) with "none".
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
    """The gradients of both losses of `dual_loss` in the student's logits, in closed form.

        d task / dz = w (softmax(z) - onehot(y)),  d general / dz = w' T (p - q);  both over B for "mean"

    Args:
        student_logits: (B, C).
        teacher_logits: (B, C).
        labels: (B,).
        temperature: T.
        teacher_offset: o, (C,) or None.
        task_weight: w, (B,) or None.
        general_weight: w', (B,) or None.
        reduction: "none", "mean" or "sum".

    Returns:
        (2, B, C) in the accumulation dtype.
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
    """How many rows have their largest logit at the label; the lowest class wins a tie.

    Args:
        student_logits: (B, C).
        labels: (B,).

    Returns:
        0-d, int64.
    """
    classes = torch.arange(student_logits.shape[1], device=student_logits.device)
    largest = student_logits == student_logits.amax(dim=1, keepdim=True)
    # argmax does not promise which of several maxima it names
    first = classes.where(largest, student_logits.shape[1]).amin(dim=1)
    return (first == labels).sum()


def linear_logits(features: Tensor, classes: Tensor, scale: float) -> Tensor:
    """The logits of `linear_dual_loss`, scale · features @ classesᵀ, (B, C) in the accumulation dtype.

    Args:
        features: (B, D) image features.
        classes: (C, D) class features.
        scale: logit scale.
    """
    dtype = accumulation_dtype(features, classes)
    return scale * (features.to(dtype) @ classes.to(dtype).T)


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
    """`dual_loss` of the logits that class features give: z = scale · X Wᵀ for the student's W and the teacher's.

    Args:
        features: X, (B, D) image features, unit rows in CLIP.
        student_classes: (C, D) class features of the student.
        teacher_classes: (C, D) class features of the teacher.
        labels: (B,) int64.
        scale: logit scale, exp of CLIP's `logit_scale`.
        temperature: as in `dual_loss`.
        general: as in `dual_loss`.
        teacher_offset: as in `dual_loss`.
        task_weight: as in `dual_loss`.
        general_weight: as in `dual_loss`.
        reduction: as in `dual_loss`.

    Returns:
        (task, general) as `dual_loss` returns them.
    """
    return dual_loss(
        linear_logits(features, student_classes, scale),
        linear_logits(features, teacher_classes, scale),
        labels,
        temperature,
        general,
        teacher_offset=teacher_offset,
        task_weight=task_weight,
        general_weight=general_weight,
        reduction=reduction,
    )


def text_to_text_loss(class_features: Tensor, template_features: Tensor, scale: float) -> Tensor:
    """Text-to-text cross-entropy of LASP: which learned prompt belongs to a hand-written sentence?

        S[l,i,j] = s ⟨u_i, h_lj⟩,  loss = -1/(L K) Σ_l Σ_j log ( exp S[l,j,j] / Σ_i exp S[l,i,j] )

    The sentence is the sample and the learned prompts are the class weights: the softmax goes over i, as in the
    authors' code (their README has it the other way round). Source: Bulat and Tzimiropoulos, LASP (arXiv:2210.01115);
    `1adrianb/lasp`, prompting/losses.py.

    Args:
        class_features: u, (K, D) features of the learned prompts, unit rows.
        template_features: h, (L, K, D) features of L templates filled with each of the K names, unit rows.
        scale: s, exp of CLIP's `logit_scale`.

    Returns:
        0-d, in the accumulation dtype.
    """
    dtype = accumulation_dtype(class_features, template_features)
    logits = scale * torch.einsum("id,ljd->lij", class_features.to(dtype), template_features.to(dtype))
    return -logits.log_softmax(dim=1).diagonal(dim1=1, dim2=2).mean()


def _logits(student_logits: Tensor, teacher_logits: Tensor, teacher_offset: Tensor | None) -> tuple[Tensor, Tensor]:
    dtype = accumulation_dtype(student_logits, teacher_logits)
    z, t = student_logits.to(dtype), teacher_logits.to(dtype)
    return z, t if teacher_offset is None else t + teacher_offset.to(dtype)


def reduced(losses: Tensor, weight: Tensor | None, reduction: Reduction) -> Tensor:
    """Losses of single rows or elements times their weights, added up."""
    losses = losses if weight is None else losses * weight.to(losses.dtype)
    match reduction:
        case "none":
            return losses
        case "mean":
            return losses.mean()
        case "sum":
            return losses.sum()
