"""The training loop."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from prograd_fast.methods import GradientLearner, GradientMethod

CHECK_EVERY = 20  # steps between two looks at the loss; each look waits for the device


@dataclass(frozen=True)
class History:
    """What was measured at each step, before its update.

    Attributes:
        task_loss: The loss that is minimised.
        general_loss: The loss that must not be worked against; NaN for a method that has none.
        cosine: Between the two gradients; NaN where either is zero or missing.
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


def tune(learner: GradientLearner, on_step: Callable[[], None] = lambda: None) -> History:
    """Train a learner on the pictures of its task, in place.

    When the task loss or its gradient is not finite, training stops, and what is learned is set back to the last state
    whose loss was finite. Otherwise nothing is read back from the device until the end, but for one flag every
    `CHECK_EVERY` steps.

    Args:
        learner: The method at work.
        on_step: Called after each step, for a progress bar.

    Returns:
        Losses and cosine of each step.
    """
    state = list(learner.module.state_dict().values())  # shares the memory of what is trained
    last_good = [tensor.clone() for tensor in state]
    healthy = torch.ones((), dtype=torch.bool, device=state[0].device)
    shuffle = torch.Generator().manual_seed(learner.task.seed)
    measured: list[Tensor] = []
    epoch = 0
    for n_epochs in learner.settings.stages():
        schedule = _schedule(learner)
        for _ in range(n_epochs):
            for batch in _batches(learner, shuffle):
                before = [tensor.clone() for tensor in state]
                step = update(learner, batch)
                # A gradient that is not finite makes the next loss NaN: the loss tells both.
                healthy = healthy & step[0].isfinite()
                last_good = [torch.where(healthy, b, good) for b, good in zip(before, last_good, strict=True)]
                measured.append(step)
                on_step()
                if len(measured) % CHECK_EVERY == 0 and not healthy:
                    return _stopped(measured, state, last_good)
            schedule.step()
            epoch += 1
            learner.epoch_ended(epoch)
    with torch.no_grad():  # the last state has no loss yet
        completed = bool(healthy & learner.losses(*batch).task.isfinite())
    return _history(measured, completed=True) if completed else _stopped(measured, state, last_good)


def n_steps(settings: GradientMethod, n_pictures: int) -> int:
    """How many steps `tune` takes on so many pictures."""
    return sum(settings.stages()) * math.ceil(n_pictures / (settings.batch_size or n_pictures))


def _schedule(learner: GradientLearner) -> torch.optim.lr_scheduler.LRScheduler:
    settings = learner.settings

    def factor(epoch: int) -> float:
        """The rate of an epoch, counted from 0, as a multiple of `lr`: constant warm-up, then half a cosine."""
        if epoch < settings.warmup_epochs:
            return settings.warmup_lr / settings.lr
        return (1 + math.cos(math.pi * (epoch - settings.warmup_epochs) / settings.epochs)) / 2

    return torch.optim.lr_scheduler.LambdaLR(learner.optimizer, factor)


def _batches(learner: GradientLearner, shuffle: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch: all pictures at once, or each once in random order; the last batch may be smaller."""
    features, labels = learner.task.image_features, learner.task.labels
    size = learner.settings.batch_size
    if size is None or size >= len(labels):
        yield features, labels
        return
    for rows in torch.randperm(len(labels), generator=shuffle).to(labels.device).split(size):
        yield features[rows], labels[rows]


def update(learner: GradientLearner, batch: tuple[Tensor, Tensor]) -> Tensor:
    """One step: (3,) task loss, general loss and cosine before it, NaN for what there is not."""
    optimizer, limit = learner.optimizer, learner.settings.clip_grad_norm
    losses = learner.losses(*batch)
    general = cosine = losses.task.new_full((), torch.nan)
    optimizer.zero_grad()
    if losses.general is None:
        losses.task.backward()
    else:
        optimizer.backward(losses.task, losses.general)
    if limit is not None:
        optimizer.project()
        torch.nn.utils.clip_grad_norm_(learner.module.parameters(), limit)
    optimizer.step()
    if losses.general is not None:
        general, cosine = losses.general, optimizer.conflict.cosine[0]
    return torch.stack([losses.task.detach().float(), general.detach().float(), cosine.float()])


def _stopped(measured: list[Tensor], state: list[Tensor], last_good: list[Tensor]) -> History:
    for tensor, good in zip(state, last_good, strict=True):
        tensor.copy_(good)
    return _history(measured, completed=False)


def _history(measured: list[Tensor], completed: bool) -> History:
    task_loss, general_loss, cosine = torch.stack(measured).T.tolist()
    finite = next((i for i, loss in enumerate(task_loss) if not abs(loss) < float("inf")), len(task_loss))
    return History(task_loss[:finite], general_loss[:finite], cosine[:finite], completed)
