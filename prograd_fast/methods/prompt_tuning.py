"""How CoOp and ProGrad tune the words before the class name. They differ in λ alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from prograd_fast.clip import PromptedCLIP, ZeroShotTeacher
from prograd_fast.losses import DualLoss
from prograd_fast.methods.base import Scores, Task
from prograd_fast.optim import ProGradSGD


@dataclass(frozen=True)
class PromptTuning:
    """Settings of prompt tuning.

    `lr` was chosen on validation pictures of emoji's base classes, for emoji-lite: `docs/settings.md` has the scan. The
    defaults do not carry over: OpenAI's CLIP has a text tower four times as wide and a logit scale five times as high.
    With it the authors use lr 0.002, momentum 0.9 and mini-batches of 32 for 50 to 200 epochs.

    Attributes:
        lambda_: Share of the conflict that is removed from the task gradient.
        ctx_init: Words before the class name: the teacher's prompt is "`ctx_init` CLASS.", and the tuned context
            starts as these words.
        n_ctx: Number of context tokens; None: as many as `ctx_init` has. Rows before the words start at zero.
        lr: Learning rate of SGD at the first step; it falls to 0 along a half cosine.
        momentum: Momentum of SGD.
        steps: Number of steps; each sees all labelled pictures (cached features make that cheap).
        temperature: Temperature of the KL loss to the teacher.

    Raises:
        ValueError: `lr` or `steps` is out of range; the other settings are checked by what they are for.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    names_new_classes: ClassVar[bool] = True

    lambda_: float
    ctx_init: str = "a picture of a"
    n_ctx: int | None = None
    lr: float = 0.03
    momentum: float = 0.9
    steps: int = 100
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.lr < float("inf"):
            raise ValueError(f"lr must be above 0 and finite, got {self.lr}")
        if self.steps < 1:
            raise ValueError(f"steps must be 1 or more, got {self.steps}")

    @property
    def template(self) -> str:
        """The teacher's prompt."""
        return f"{self.ctx_init} {{}}."

    def start(self, task: Task) -> "PromptTuningLearner":
        """Build network, teacher, losses and optimizer. Nothing in them is random."""
        return PromptTuningLearner(self, task)


class Step(NamedTuple):
    """What one training step measured, before its update: 0-d device tensors.

    Attributes:
        task_loss: Cross-entropy to the labels.
        general_loss: KL divergence to the teacher.
        cosine: Between the gradients of the two; negative means conflict; NaN where either gradient is zero.
    """

    task_loss: Tensor
    general_loss: Tensor
    cosine: Tensor


class TunedPrompt:
    """A context that can stand before any class names.

    Attributes:
        net: a network that holds the context, `net.prompt.ctx`.
    """

    def __init__(self, net: PromptedCLIP):
        self.net = net

    def scores(self, class_names: Sequence[str]) -> Scores:
        """The context before these class names, which are encoded once, here."""
        net = self.net.with_classes(class_names)
        with torch.no_grad():
            class_features = net.class_features()
        return lambda image_features: net.logits(image_features, class_features)


class PromptTuningLearner(TunedPrompt):
    """A context under training.

    Attributes:
        settings: the method's settings.
        net: the network over the task's classes; `net.prompt.ctx` is what is tuned.
    """

    def __init__(self, settings: PromptTuning, task: Task):
        super().__init__(PromptedCLIP(task.model, task.tokenizer, task.class_names, settings.n_ctx, settings.ctx_init))
        self.settings = settings
        self.task = task
        self.teacher = ZeroShotTeacher(task.model, task.tokenizer, task.class_names, settings.template)
        self.teacher_logits = self.teacher.logits(task.image_features)
        self.criterion = DualLoss(temperature=settings.temperature)
        self.optimizer = ProGradSGD(
            [self.net.prompt.ctx], lr=settings.lr, momentum=settings.momentum, lambda_=settings.lambda_
        )
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, settings.steps)

    def step(self) -> Step:
        """One update on all labelled pictures; nothing is read back from the device."""
        student_logits = self.net.logits(self.task.image_features)
        task, general = self.criterion(student_logits, self.teacher_logits, self.task.labels)
        self.optimizer.zero_grad()
        self.optimizer.backward(task, general)
        self.optimizer.step()
        self.schedule.step()
        return Step(task.detach(), general.detach(), self.optimizer.conflict.cosine[0].clone())
