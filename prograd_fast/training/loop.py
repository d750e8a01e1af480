"""The training loop."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from prograd_fast.methods import PromptTuningLearner

CHECK_EVERY = 20  # steps between two looks at the loss; each look waits for the device


@dataclass(frozen=True)
class History:
    """What was measured at each step, before its update.

    Attributes:
        task_loss: Cross-entropy to the labels.
        general_loss: KL divergence to the teacher.
        cosine: Between the two gradients; NaN where either is zero.
        completed: Whether the loss stayed finite. If not, the lists end before the first step where it was not.
    """

    task_loss: list[float]
    general_loss: list[float]
    cosine: list[float]
    completed: bool

    @property
    def conflict(self) -> list[bool]:
        """Whether the two gradients conflicted: cosine < 0."""
        return [cosine < 0 for cosine in self.cosine]

    @property
    def conflict_rate(self) -> float:
        """Share of the steps after the first with a conflict; NaN without such steps.

        At the first step the student is the teacher, unless zero rows precede its words: the general gradient is zero
        but for rounding, and says nothing.
        """
        later = self.conflict[1:]
        return sum(later) / len(later) if later else float("nan")


def tune(learner: PromptTuningLearner, on_step: Callable[[], None] = lambda: None) -> History:
    """Train a context for `learner.settings.steps` steps, in place.

    When the task loss or its gradient is not finite, training stops, and the context is set back to the last one whose
    loss was finite. Otherwise nothing is read back from the device until the end, but for one flag every
    `CHECK_EVERY` steps.

    Args:
        learner: The context with its losses and optimizer.
        on_step: Called after each step, for a progress bar.

    Returns:
        Losses and cosine of each step.
    """
    ctx = learner.net.prompt.ctx.detach()
    last_good = ctx.clone()
    healthy = torch.ones((), dtype=torch.bool, device=ctx.device)
    measured = []
    for i in range(learner.settings.steps):
        before = ctx.clone()
        step = learner.step()
        # A gradient that is not finite makes the next loss NaN: the loss tells both.
        healthy = healthy & step.task_loss.isfinite()
        last_good = torch.where(healthy, before, last_good)
        measured.append(torch.stack([loss.float() for loss in step]))
        on_step()
        if (i + 1) % CHECK_EVERY == 0 and not healthy:
            break
    with torch.no_grad():  # the last context has no loss yet
        completed = bool(healthy & learner.net.class_features().isfinite().all())
    if not completed:
        ctx.copy_(last_good)
    task_loss, general_loss, cosine = torch.stack(measured).T.tolist()
    finite = next((i for i, loss in enumerate(task_loss) if not abs(loss) < float("inf")), len(task_loss))
    return History(task_loss[:finite], general_loss[:finite], cosine[:finite], completed)
