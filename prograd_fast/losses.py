"""Losses as modules: what a training loop calls."""

import torch
from torch import Tensor, nn

from prograd_fast.reference.losses import GENERAL_LOSSES, General, dual_loss


class DualLoss(nn.Module):
    """Cross-entropy to the labels and distance to the zero-shot teacher: the two losses of ProGrad.

    task = -log softmax(z)[y], general = T²·KL(softmax(t/T) ‖ softmax(z/T)), both means over the batch.

    The authors report the soft cross-entropy, which is the KL divergence plus the teacher's entropy and has the same
    gradient; `general="soft_ce"` gives theirs. Source: arXiv:2205.14865; formula: `prograd_fast.reference.dual_loss`.

    Args:
        temperature: T > 0 of the general loss (default: 1.0, as in all of the authors' settings).
        general: "kl" (default) or "soft_ce".

    Raises:
        ValueError: `temperature` is not above 0, or `general` is unknown.

    Example:
        >>> import torch, prograd_fast as pf
        >>> student = torch.randn(4, 10, requires_grad=True)
        >>> task, general = pf.DualLoss()(student, torch.randn(4, 10), torch.tensor([0, 3, 9, 3]))
        >>> task.shape, bool(general >= 0)
        (torch.Size([]), True)
    """

    def __init__(self, temperature: float = 1.0, general: General = "kl") -> None:
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"temperature: expected a number above 0, got {temperature!r}. Use 1.0 as the authors do.")
        if general not in GENERAL_LOSSES:
            raise ValueError(f"general: expected one of {', '.join(GENERAL_LOSSES)}, got {general!r}.")
        self.temperature = temperature
        self.general: General = general

    def forward(self, student_logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Both losses.

        Args:
            student_logits: (B, C), any real float dtype.
            teacher_logits: (B, C), same device; must not require grad: the teacher is fixed.
            labels: (B,) int64 in 0 ... C - 1. On a GPU a label outside is caught by PyTorch's own device check, since
                looking at it here would wait for the device.

        Returns:
            (task, general), two 0-d tensors, float32 or wider.

        Raises:
            TypeError: logits are not floating point, or labels are not integers.
            ValueError: shapes or devices do not fit, the teacher requires grad, or (on a CPU) a label is out of range.
        """
        _check(student_logits, teacher_logits, labels)
        try:
            return dual_loss(student_logits, teacher_logits, labels.long(), self.temperature, self.general)
        except (IndexError, RuntimeError) as error:
            if "out of bounds" not in str(error):
                raise
            raise ValueError(
                f"labels: expected class indices 0 ... {student_logits.shape[1] - 1}, got "
                f"{int(labels.min())} ... {int(labels.max())}. Relabel the classes from 0 in the order of the logits."
            ) from None

    def extra_repr(self) -> str:
        """The settings, for repr()."""
        return f"temperature={self.temperature}, general={self.general!r}"


def _check(student_logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> None:
    for name, logits in (("student_logits", student_logits), ("teacher_logits", teacher_logits)):
        if not logits.is_floating_point():
            raise TypeError(f"{name}: expected a floating-point tensor, got {logits.dtype}.")
    if student_logits.dim() != 2:
        raise ValueError(f"student_logits: expected shape (batch, classes), got {tuple(student_logits.shape)}.")
    if teacher_logits.shape != student_logits.shape:
        raise ValueError(
            f"teacher_logits: expected the student's shape {tuple(student_logits.shape)}, got "
            f"{tuple(teacher_logits.shape)}. Build the teacher with the same class names."
        )
    if teacher_logits.requires_grad:
        raise ValueError(
            "teacher_logits: expected a fixed teacher, got logits that require grad; the general gradient would also "
            "flow into the teacher. Pass teacher_logits.detach()."
        )
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise TypeError(f"labels: expected integer class indices, got {labels.dtype}.")
    if labels.shape != student_logits.shape[:1]:
        raise ValueError(
            f"labels: expected shape ({student_logits.shape[0]},), one index per row of logits, got "
            f"{tuple(labels.shape)}."
        )
    if not student_logits.device == teacher_logits.device == labels.device:
        raise ValueError(
            f"devices: expected one for all, got student_logits on {student_logits.device}, teacher_logits on "
            f"{teacher_logits.device}, labels on {labels.device}."
        )
