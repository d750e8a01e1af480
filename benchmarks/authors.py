"""What the authors' trainer computes at each step, written out in eager PyTorch: the baseline of the benchmarks.

After BeierZhu/Prompt-align, `prograd_backward_and_update` and `ProGradLoss`; see the notes in tests/golden/README.md.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def project_(params: Sequence[Tensor], general: Sequence[Tensor], lambda_: float = 1.0) -> None:
    """Norms, unit vectors and a branch on the host for each tensor; `.grad` holds the task gradient and is replaced."""
    for p, b in zip(params, general, strict=True):
        b_unit = b / torch.linalg.norm(b)
        a_unit = p.grad / torch.linalg.norm(p.grad)
        if torch.dot(a_unit.flatten(), b_unit.flatten()) < 0:
            p.grad = p.grad - lambda_ * torch.dot(p.grad.flatten(), b_unit.flatten()) * b_unit


def losses(student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Cross-entropy and T² times the soft cross-entropy to the teacher."""
    task = F.cross_entropy(student_logits, labels)
    soft = F.softmax(teacher_logits / temperature, dim=-1)
    general = -soft * F.log_softmax(student_logits / temperature, -1) * temperature * temperature
    return task, general.sum(1).mean()
