"""Heads on cached image features: both towers stay as they are, and what is learned turns features into logits."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prograd_fast.clip import mean_of_units, template_features
from prograd_fast.losses import DualLoss
from prograd_fast.methods.base import (
    GradientLearner,
    GradientMethod,
    Learner,
    Losses,
    Method,
    Scores,
    Task,
    Teacher,
    count_correct,
)
from prograd_fast.methods.linear_probe import check_classes
from prograd_fast.methods.rows import lengths
from prograd_fast.methods.templates import COOP, by_set, check_templates
from prograd_fast.optim.two_gradients import TwoGradients


class Texts:
    """The classes' prompts, as the text tower sees them.

    Args:
        names: C class names.
        embeddings: (L, C, D), template by template, not normalised.
        scale: s, exp of the model's `logit_scale`; 100 for OpenAI's CLIP.
    """

    def __init__(self, names: Sequence[str], embeddings: Tensor, scale: float) -> None:
        self.names, self.embeddings, self.scale = tuple(names), embeddings, scale

    @classmethod
    def of(cls, task: Task | Teacher, class_names: Sequence[str], templates: Sequence[str]) -> "Texts":
        """Encode the prompts of these classes, in the dtype of the task's features."""
        embeddings = template_features(task.model, task.tokenizer, class_names, templates)
        model: Any = task.model
        return cls(class_names, embeddings.to(task.image_features), float(model.logit_scale.detach().exp()))

    @cached_property
    def mean(self) -> Tensor:
        """(C, D): the mean over the templates, without any normalisation."""
        return self.embeddings.mean(0)

    @cached_property
    def unit(self) -> Tensor:
        """(C, D) unit rows: zero-shot CLIP's class features (`ZeroShotTeacher`)."""
        return mean_of_units(self.embeddings)

    def logits(self, x: Tensor) -> Tensor:
        """(B, C) zero-shot logits of (B, D) unit rows."""
        return self.scale * (x @ self.unit.T)

    def logits_of_any_length(self, z: Tensor) -> Tensor:
        """(B, C) zero-shot logits of (B, D) rows z that are not unit rows: s · u(z) u(t)ᵀ.

        The length is divided out of the B·C logits, which are fewer numbers than the B·D of z: a training step passes
        over z less often.
        """
        return z @ self.unit.T * (self.scale / lengths(z))


class Head(nn.Module):
    """Whatever stands between image features and logits; parameters and buffers are all that is learned.

    A subclass names in `per_picture` the tensors that have a row for each picture: they take the length that a saved
    state has. `picture_weight` is the weight of the pictures' cross-entropy in the loss.
    """

    per_picture: ClassVar[tuple[str, ...]] = ()
    picture_weight: ClassVar[float] = 1.0

    @abstractmethod
    def forward(self, x: Tensor, texts: Texts) -> Tensor:
        """(B, C) logits of (B, D) unit rows."""

    def teacher_logits(self, x: Tensor, texts: Texts) -> Tensor:
        """(B, C) logits of zero-shot, without graph."""
        return texts.logits(x)

    def terms(self, texts: Texts) -> Mapping[str, Tensor]:
        """Summands of the loss beside the cross-entropy, by name."""
        return {}

    @torch.no_grad()
    def classifier(self, texts: Texts) -> Scores:
        """Logits without graph, for classes that stay the same."""
        return lambda x: self(x, texts).detach()

    def _load_from_state_dict(self, state: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        for name in self.per_picture:
            own, found = getattr(self, name), state.get(prefix + name)
            if not isinstance(found, Tensor) or found.shape == own.shape:
                continue  # the memory stays where it is: a training loop knows it
            if found.ndim == own.ndim and found.shape[1:] == own.shape[1:]:
                own.data = own.data.new_empty(found.shape)
        super()._load_from_state_dict(state, prefix, *rest)


class LinearHead(Head):
    """A head whose logits are scale · x Wᵀ + b, the same matrix for every picture."""

    @abstractmethod
    def linear(self, texts: Texts) -> tuple[Tensor, float, Tensor | None]:
        """(C, D) weight W, scale, and (C,) bias b or None."""

    def forward(self, x: Tensor, texts: Texts) -> Tensor:
        """See `Head`."""
        return _linear_logits(x, *self.linear(texts))

    @torch.no_grad()
    def classifier(self, texts: Texts) -> Scores:
        """See `Head`; the matrix is computed once, here."""
        parts = self.linear(texts)
        return lambda x: _linear_logits(x, *parts).detach()


def _linear_logits(x: Tensor, weight: Tensor, scale: float, bias: Tensor | None) -> Tensor:
    logits = scale * (x @ weight.T)
    return logits if bias is None else logits + bias


@dataclass(frozen=True)
class HeadMethod(Method):
    """Settings of a head.

    Attributes:
        templates: The prompts of the classes, `{}` stands for the name.

    Raises:
        ValueError: a setting is out of range.
    """

    templates: tuple[str, ...] = ("a picture of a {}.",)

    set_settings: ClassVar[Mapping[str, Mapping[str, Any]]] = by_set(COOP)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_templates(self.templates)

    @property
    def teacher_templates(self) -> tuple[str, ...]:
        """The prompts of the untouched model."""
        return self.templates

    @abstractmethod
    def head(self, task: Task, texts: Texts) -> Head:
        """The head at its start; of a method without steps, fitted. The task may have no pictures."""

    def start(self, task: Task) -> "HeadLearner":
        """Encode the prompts, and set the head up."""
        return self.learner(task, Texts.of(task, task.class_names, self.templates))

    def learner(self, task: Task, texts: Texts) -> "HeadLearner":
        """The method at work, with these prompts of the task's classes."""
        return HeadLearner(self, task, texts)


class HeadLearner(Learner):
    """A head on a task.

    Args:
        settings: The method.
        task: The pictures.
        texts: The prompts of the task's classes.
    """

    module: Head

    def __init__(self, settings: HeadMethod, task: Task, texts: Texts) -> None:
        self.settings, self.task, self.texts = settings, task, texts
        self.class_names = tuple(task.class_names)
        with torch.random.fork_rng():
            torch.manual_seed(task.seed)
            self.module = settings.head(task, texts).to(task.image_features)

    def texts_of(self, class_names: Sequence[str]) -> Texts:
        """The prompts of these classes; ValueError if the method does not know them."""
        if not self.settings.names_new_classes:
            check_classes(class_names, self.class_names)
        if tuple(class_names) == self.class_names:
            return self.texts
        return Texts.of(self.task, class_names, self.settings.templates)

    def scores(self, class_names: Sequence[str]) -> Scores:
        """The head's logits."""
        texts = self.texts_of(class_names)
        classifier = self.module.classifier(texts)
        return lambda x: classifier(x.to(texts.embeddings))


@dataclass(frozen=True)
class TrainedHead(HeadMethod, GradientMethod):
    """Settings of a head that is trained by gradients.

    Attributes:
        lambda_: Share of the conflict with the zero-shot teacher that is removed from the task gradient, which is
            ProGrad in any of these methods. 0: the conflict is measured, for the run record, and never acted upon.
            None: it is not measured either, and the method is its authors'.
        temperature: Temperature of the KL loss to the teacher.
    """

    lambda_: float | None = None
    temperature: float = 1.0

    optimizer: ClassVar[Literal["sgd", "adam", "adamw"]] = "sgd"
    eps: ClassVar[float] = 1e-8  # of Adam

    def start(self, task: Task) -> "TrainedHeadLearner":
        """Encode the prompts, and set the head up."""
        return self.learner(task, Texts.of(task, task.class_names, self.templates))

    def learner(self, task: Task, texts: Texts) -> "TrainedHeadLearner":
        """See `HeadMethod`."""
        return TrainedHeadLearner(self, task, texts)

    def new_optimizer(self, learner: "TrainedHeadLearner") -> TwoGradients:
        """The optimizer of everything in the head."""
        parameters, lambda_ = learner.module.parameters(), learner.lambda_
        if self.optimizer == "sgd":
            return learner.new_sgd(parameters, lambda_=lambda_)
        return learner.new_adam(parameters, decoupled=self.optimizer == "adamw", eps=self.eps, lambda_=lambda_)

    def epoch_ended(self, learner: "TrainedHeadLearner", epoch: int) -> None:
        """See `GradientLearner`."""

    def training_ended(self, learner: "TrainedHeadLearner") -> None:
        """See `GradientLearner`."""


class TrainedHeadLearner(HeadLearner, GradientLearner):
    """A head under training."""

    settings: TrainedHead

    def __init__(self, settings: TrainedHead, task: Task, texts: Texts) -> None:
        super().__init__(settings, task, texts)
        self.generator = torch.Generator(task.device).manual_seed(task.seed)
        self.memory = {}
        self.criterion = DualLoss(settings.temperature)
        self.optimizer = settings.new_optimizer(self)

    @cached_property
    def general_texts(self) -> Texts | None:
        """The prompts as `Task.teacher` sees them; None: the teacher is zero-shot with the task's own model."""
        other = self.task.teacher
        return None if other is None else Texts.of(other, self.class_names, self.settings.templates)

    @property
    def lambda_(self) -> float:
        """The λ of the optimizer, which is of no account where there is one loss alone."""
        return 1.0 if self.settings.lambda_ is None else self.settings.lambda_

    def losses(self, image_features: Tensor, labels: Tensor) -> Losses:
        """Cross-entropy and the head's terms; and the KL divergence to the teacher, unless λ is None."""
        x, seen = self.seen(image_features, self.texts.embeddings.dtype)
        logits = self.module(x, self.texts)
        general: Tensor | None = None
        correct: Tensor | None
        if self.settings.lambda_ is None:
            entropy, correct = F.cross_entropy(logits, labels), count_correct(logits.detach(), labels)
        else:
            other = self.general_texts
            teacher = self.module.teacher_logits(x, self.texts) if other is None else other.logits(seen)
            entropy, general = self.criterion(logits, teacher, labels)
            correct = self.criterion.correct
        terms = {"cross_entropy": self.module.picture_weight * entropy, **self.module.terms(self.texts)}
        total = torch.stack(list(terms.values())).sum() if len(terms) > 1 else entropy
        return Losses(total, general, {name: term.detach() for name, term in terms.items()}, correct)

    @torch.no_grad()
    def epoch_ended(self, epoch: int) -> None:
        """See `GradientLearner`."""
        self.settings.epoch_ended(self, epoch)

    @torch.no_grad()
    def training_ended(self) -> None:
        """See `GradientLearner`."""
        self.settings.training_ended(self)


def class_counts(task: Task, title: str) -> Tensor:
    """(C,) pictures of each class; ValueError if one has none."""
    counts = torch.bincount(task.labels, minlength=len(task.class_names))
    missing = [name for name, count in zip(task.class_names, counts.tolist(), strict=True) if not count]
    if missing:
        raise ValueError(f"{title} needs a picture of every class to learn from; {missing[0]!r} has none")
    return counts


def accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """Top-1 accuracy of (..., V, C) logits, (...), on the device."""
    return (logits.argmax(-1) == labels).double().mean(-1)
