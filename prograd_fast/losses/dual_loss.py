"""ProGrad's two losses."""

from collections.abc import Callable

from torch import Tensor, nn

from prograd_fast.ops.common import REDUCTIONS
from prograd_fast.ops.dual_loss import General, check_loss_options, dual_loss_and_count
from prograd_fast.ops.linear_dual_loss import linear_dual_loss_and_count
from prograd_fast.ops.registry import SHORTCUTS


class DualLoss(nn.Module):
    """Cross-entropy to the labels and distance to the zero-shot teacher: the two losses of ProGrad, in one pass.

    task = -log softmax(z)[y], general = T²·KL(softmax(t/T) ‖ softmax(z/T)), both means over the batch.

    The authors report the soft cross-entropy, which is the KL divergence plus the teacher's entropy and has the same
    gradient; `general="soft_ce"` gives theirs. Source: arXiv:2205.14865; formula: `prograd_fast.reference.dual_loss`.
    Row weights, prior offsets and other reductions: `prograd_fast.functional.dual_loss`.

    On a CPU the memory of the gradients, 2·B·C numbers, is used again by the next call once nobody holds it any more:
    no loss, graph, gradient, view or array. Of 16 MiB or more, two pieces of different sizes wait for that at most;
    they are freed when a `DualLoss` is deleted or the kernels are changed.

    Attributes:
        correct: How many rows of the last call have their label as the student's largest logit: 0-d int64, on the
            device. None before the first call. The pass over the logits finds it at no cost.

    Args:
        temperature: T > 0 of the general loss (default: 1.0, as in all of the authors' settings).
        general: "kl" (default) or "soft_ce".

    Raises:
        ValueError: `temperature` is not above 0, or `general` is unknown.

    Example:
        >>> import torch, prograd_fast as pf
        >>> criterion = pf.DualLoss()
        >>> student = torch.eye(4, 10).requires_grad_()
        >>> task, general = criterion(student, torch.randn(4, 10), torch.tensor([0, 1, 2, 9]))
        >>> task.shape, bool(general >= 0), int(criterion.correct)
        (torch.Size([]), True, 3)
    """

    __call__: Callable[..., tuple[Tensor, Tensor]]

    correct: Tensor | None

    def __init__(self, temperature: float = 1.0, general: General = "kl") -> None:
        super().__init__()
        check_loss_options(temperature, general, "mean")
        self.temperature = temperature
        self.general: General = general
        self.correct = None

    def forward(self, student_logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Both losses.

        Args:
            student_logits: (B, C), any real float dtype.
            teacher_logits: (B, C), same device; must not require grad: the teacher is fixed.
            labels: (B,) integers in 0 ... C - 1. On a GPU, where looking would wait for the device, a label outside
                makes the task loss and the task cotangents of its row NaN.

        Returns:
            (task, general), two 0-d tensors, float32 or wider; differentiable in the student's logits.

        Raises:
            TypeError: logits are not floating point, or labels are not integers.
            ValueError: shapes or devices do not fit, the teacher requires grad, or (on a CPU) a label is out of range.
        """
        rows = (labels, None, None, None)
        task, general, correct = dual_loss_and_count(student_logits, teacher_logits, rows, self._options())
        self._keep(correct)
        return task, general

    def from_features(
        self, features: Tensor, student_classes: Tensor, teacher_classes: Tensor, labels: Tensor, scale: float
    ) -> tuple[Tensor, Tensor]:
        """Both losses of the logits that class features give, scale · X Wᵀ, without ever storing B x C of them.

        Args:
            features: X, (B, D) image features; fixed.
            student_classes: (C, D) class features of the student.
            teacher_classes: (C, D) class features of the teacher; fixed.
            labels: (B,) integers in 0 ... C - 1.
            scale: logit scale, exp of CLIP's `logit_scale`.

        Returns:
            (task, general) as `forward`; differentiable in the student's class features.

        Raises:
            TypeError, ValueError: as `forward`, named after the arguments here.
        """
        rows, options = (labels, None, None, None), (scale, *self._options())
        task, general, correct = linear_dual_loss_and_count(features, student_classes, teacher_classes, rows, options)
        self._keep(correct)
        return task, general

    def _keep(self, correct: Tensor) -> None:
        # what nn.Module asks of an assignment takes as long as autograd's part of the forward
        object.__setattr__(self, "correct", correct)

    def _options(self) -> tuple[float, bool, int]:
        check_loss_options(self.temperature, self.general, "mean")  # they may have been set since
        return self.temperature, self.general == "soft_ce", REDUCTIONS.index("mean")

    def __del__(self) -> None:
        release = SHORTCUTS.get("release_memory")
        if release is not None:
            release()

    def extra_repr(self) -> str:
        """The settings, for repr()."""
        return f"temperature={self.temperature}, general={self.general!r}"
