"""The dual loss: cross-entropy to the labels, and distance to the zero-shot teacher, from one pair of logits."""

from typing import Literal, get_args

import torch
from torch import Tensor

General = Literal["kl", "soft_ce"]
GENERAL_LOSSES: tuple[str, ...] = get_args(General)


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
) -> tuple[Tensor, Tensor]:
    r"""Task loss and general loss of ProGrad.

    With student logits z, teacher logits t, labels y, p = softmax(z/T), q = softmax(t/T), all means over the B rows:

        task    = -log softmax(z)[y]
        general = T² Σ_c q_c (log q_c - log p_c)      "kl", KL(q‖p)
                = -T² Σ_c q_c log p_c                 "soft_ce", the same plus the teacher's entropy

    Both general losses have the gradient T (p - q) / B in z. A class that the teacher excludes (t = -inf) adds nothing.

    Source: Zhu et al., Prompt-aligned Gradient for Prompt Tuning (arXiv:2205.14865); the authors' `ProGradLoss`
    reports "soft_ce".

    Args:
        student_logits: (B, C), any float dtype; the arithmetic is float32 or wider.
        teacher_logits: (B, C).
        labels: (B,) int64, each in 0 ... C - 1.
        temperature: T > 0, of the general loss only.
        general: "kl" or "soft_ce".

    Returns:
        Two 0-d tensors in the accumulation dtype.
    """
    dtype = accumulation_dtype(student_logits, teacher_logits)
    z, t = student_logits.to(dtype), teacher_logits.to(dtype)
    task = -z.log_softmax(dim=1).gather(1, labels.unsqueeze(1)).mean()

    log_p = (z / temperature).log_softmax(dim=1)
    log_q = (t / temperature).log_softmax(dim=1)
    q = log_q.exp()
    pointwise = q * (log_q - log_p) if general == "kl" else -q * log_p
    # 0 · log 0 = 0: an excluded class would otherwise make 0 · (-inf) = NaN
    pointwise = pointwise.where(q > 0, 0.0)
    return task, temperature**2 * pointwise.sum(dim=1).mean()
