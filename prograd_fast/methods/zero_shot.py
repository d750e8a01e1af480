"""Zero-shot CLIP: hand-written prompts, nothing learned. The teacher of ProGrad, and the line to beat."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from prograd_fast.clip import ZeroShotTeacher
from prograd_fast.methods import templates as prompts
from prograd_fast.methods.base import Learner, Method, Scores, Task


@dataclass(frozen=True)
class ZeroShot(Method):
    """Radford et al. 2021, arXiv:2103.00020, with one template or several.

    A class's feature is the mean of its unit features over the templates, normalised again. With f the text tower and
    u(·) a unit row:

        w_c = u(Σ_k u(f(template_k with name_c))),   z_c = s · ⟨x, w_c⟩

    Attributes:
        templates: The prompts, `{}` stands for the class name.
    """

    templates: tuple[str, ...] = ("a picture of a {}.",)

    name: ClassVar[str] = "zero-shot"
    title: ClassVar[str] = "zero-shot"
    year: ClassVar[int | None] = 2021
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "imagenet-80": {"templates": prompts.IMAGENET},
        "imagenet-7": {"templates": prompts.SELECTED},
    }

    set_settings: ClassVar[Mapping[str, Mapping[str, Any]]] = prompts.by_set(prompts.COOP)
    table_shots: ClassVar[Mapping[str, int]] = {"few-shot": 1}  # all numbers are the same

    def start(self, task: Task) -> "ZeroShotLearner":
        """Take the task's model; its pictures are not looked at."""
        return ZeroShotLearner(self, task)


class ZeroShotLearner(Learner):
    """The untouched model."""

    def __init__(self, settings: ZeroShot, task: Task) -> None:
        self.settings, self.task = settings, task
        self.module = nn.Module()  # nothing is learned

    def scores(self, class_names: Sequence[str]) -> Scores:
        """Cosine to each class's prompt, times the model's logit scale."""
        return ZeroShotTeacher(self.task.model, self.task.tokenizer, class_names, self.settings.templates).logits
