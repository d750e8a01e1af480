"""What the methods share: the task they are given, and what becomes of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

from torch import Tensor, nn

from prograd_fast.clip import Tokenizer

Scores = Callable[[Tensor], Tensor]  # (B, D) unit image features -> (B, C) scores, the highest one wins


@dataclass(frozen=True)
class Task:
    """A few labelled pictures, and the model to adapt to them.

    Attributes:
        model: A frozen open_clip model.
        tokenizer: Its tokenizer.
        class_names: The C classes to learn.
        image_features: (N, D) unit rows, float32: the image tower's view of the labelled pictures.
        labels: (N,) int64, indices into `class_names`.
    """

    model: nn.Module
    tokenizer: Tokenizer
    class_names: Sequence[str]
    image_features: Tensor
    labels: Tensor


class Learner(Protocol):
    """A method at work on one task."""

    def scores(self, class_names: Sequence[str]) -> Scores:
        """The classifier for these classes, learned or not; ValueError if the method cannot name them."""


class Method(Protocol):
    """A published way to adapt a model: its settings, as a frozen dataclass."""

    name: ClassVar[str]  # on the command line and in run records
    title: ClassVar[str]  # in tables and plots
    names_new_classes: ClassVar[bool]  # False: it knows only the classes that it was trained on

    def start(self, task: Task) -> Learner:
        """Set the method up on a task."""
