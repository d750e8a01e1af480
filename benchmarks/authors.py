"""The computation of the authors' trainer at each step, written out in eager PyTorch: the baseline of the benchmarks.

After BeierZhu/Prompt-align, `prograd_backward_and_update` and `ProGradLoss`; see the notes in tests/golden/README.md.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def project(task: Sequence[Tensor], general: Sequence[Tensor], lambda_: float = 1.0) -> list[Tensor]:
    """A clone, norms, unit vectors and a branch on the host for each tensor.

    The trainer also clones each general gradient between its two backward passes. That is not counted here, as the
    clones of `ProGradAdamW.backward` are not counted in its step.
    """
    projected = []
    for a, b in zip(task, general, strict=True):
        b_unit = b / torch.linalg.norm(b)
        kept = a.clone()
        a_unit = kept / torch.linalg.norm(kept)
        if torch.dot(a_unit.flatten(), b_unit.flatten()) < 0:
            a = kept - lambda_ * torch.dot(kept.flatten(), b_unit.flatten()) * b_unit
        projected.append(a)
    return projected


def losses(student_logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy, and soft cross-entropy to the teacher, at the temperature 1 of all of the authors' settings."""
    task = F.cross_entropy(student_logits, labels)
    soft = F.softmax(teacher_logits, dim=-1)
    general = -soft * F.log_softmax(student_logits, -1)
    return task, general.sum(1).mean()


def step(optimizer: torch.optim.Optimizer, ctx: Tensor, both_losses: Callable[[], tuple[Tensor, Tensor]]) -> None:
    """Two backward passes through the whole graph, the general loss first; projection; update."""
    task, general = both_losses()
    optimizer.zero_grad()
    general.backward(retain_graph=True)
    assert ctx.grad is not None
    b = ctx.grad.clone()
    optimizer.zero_grad()
    task.backward()
    (ctx.grad,) = project([ctx.grad], [b])
    optimizer.step()
