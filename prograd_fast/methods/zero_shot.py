"""Zero-shot CLIP: one hand-written prompt, nothing learned. The teacher of ProGrad, and the line to beat."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from prograd_fast.clip import Tokenizer, ZeroShotTeacher
from prograd_fast.methods.base import Scores, Task


@dataclass(frozen=True)
class ZeroShot:
    """Radford et al. 2021, arXiv:2103.00020, with a single template.

    Attributes:
        template: The prompt, `{}` stands for the class name.
    """

    template: str = "a picture of a {}."

    name: ClassVar[str] = "zero-shot"
    title: ClassVar[str] = "zero-shot"
    names_new_classes: ClassVar[bool] = True

    def start(self, task: Task) -> "ZeroShotLearner":
        """Take the task's model; its pictures are not looked at."""
        return ZeroShotLearner(task.model, task.tokenizer, self.template)


@dataclass(frozen=True)
class ZeroShotLearner:
    """The untouched model."""

    model: nn.Module
    tokenizer: Tokenizer
    template: str

    def scores(self, class_names: Sequence[str]) -> Scores:
        """Cosine to each class's prompt, times the model's logit scale."""
        return ZeroShotTeacher(self.model, self.tokenizer, class_names, self.template).logits
