"""ProGrad's two losses."""

from torch import Tensor, nn

from prograd_fast import functional
from prograd_fast.checks import check_loss_options
from prograd_fast.reference.losses import General


class DualLoss(nn.Module):
    """Cross-entropy to the labels and distance to the zero-shot teacher: the two losses of ProGrad, in one pass.

    task = -log softmax(z)[y], general = T²·KL(softmax(t/T) ‖ softmax(z/T)), both means over the batch.

    The authors report the soft cross-entropy, which is the KL divergence plus the teacher's entropy and has the same
    gradient; `general="soft_ce"` gives theirs. Source: arXiv:2205.14865; formula: `prograd_fast.reference.dual_loss`,
    which is also what to call for second derivatives. Row weights, prior offsets and other reductions:
    `prograd_fast.functional.dual_loss`.

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
        check_loss_options(temperature, general, "mean")
        self.temperature = temperature
        self.general: General = general

    def forward(self, student_logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Both losses.

        Args:
            student_logits: (B, C), any real float dtype.
            teacher_logits: (B, C), same device; must not require grad: the teacher is fixed.
            labels: (B,) integers in 0 ... C - 1. On a GPU a label outside is not looked for, since looking would wait
                for the device.

        Returns:
            (task, general), two 0-d tensors, float32 or wider; each differentiable once.

        Raises:
            TypeError: logits are not floating point, or labels are not integers.
            ValueError: shapes or devices do not fit, the teacher requires grad, or (on a CPU) a label is out of range.
        """
        return functional.dual_loss(student_logits, teacher_logits, labels, self.temperature, self.general)

    def extra_repr(self) -> str:
        """The settings, for repr()."""
        return f"temperature={self.temperature}, general={self.general!r}"
