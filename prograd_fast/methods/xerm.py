"""xERM: a classifier for a long tail of classes learns from a biased and a balanced view of a frozen teacher."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prograd_fast import losses
from prograd_fast.losses.xerm import causal_norm_logits, prior_offset
from prograd_fast.methods.base import GradientLearner, GradientMethod, Losses, Scores, Task, count_correct
from prograd_fast.methods.linear_probe import check_classes
from prograd_fast.optim import ProGradSGD

Variant = Literal["pc", "tde"]


@dataclass(frozen=True)
class XERMClassifier(GradientMethod):
    """Zhu et al., AAAI 2022, arXiv:2112.14380; code BeierZhu/xERM. Here with linear classifiers on the image features.

    The first stage trains the teacher on the labels; its logits f are biased towards frequent classes. The second stage
    trains the student on `prograd_fast.losses.XERM`, which takes any classifier's logits z, with f and balanced logits
    c:

        loss = mean of w_f · -log softmax(z)_y - w_c · Σ_k softmax(c)_k log softmax(z)_k
        w_c = CE(c, y)^γ / (CE(c, y)^γ + CE(f, y)^γ),   w_f = 1 - w_c

    Attributes:
        variant: "pc": c = f - log π_train + log π_test with a uniform π_test, linear classifiers.
            "tde": c is `CausalNormClassifier.counterfactual`, and teacher and student are such classifiers.
        gamma: γ of the weights; 1.5 for CIFAR100-LT and 2 for ImageNet-LT and Places-LT.
    """

    lr: float = 1.0
    variant: Variant = "pc"
    gamma: float = 2.0

    name: ClassVar[str] = "xerm"
    title: ClassVar[str] = "xERM"
    year: ClassVar[int | None] = 2022
    trains: ClassVar[str] = "a teacher, then a student, both linear"
    keeps: ClassVar[str] = "a balanced view of rare classes"
    names_new_classes: ClassVar[bool] = False
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "cifar100-lt": {"variant": "pc", "gamma": 1.5, "weight_decay": 1e-4},
        "imagenet-lt": {"variant": "pc", "gamma": 2.0},
        "places-lt": {"variant": "tde", "gamma": 2.0},
    }

    def __post_init__(self) -> None:
        if self.gamma == float("inf"):  # no size, but no meaning either
            raise ValueError(f"gamma must be above 0 and finite, got {self.gamma}")
        super().__post_init__()
        if self.variant not in ("pc", "tde"):
            raise ValueError(f"variant must be 'pc' or 'tde', got {self.variant!r}")
        if not self.gamma > 0:
            raise ValueError(f"gamma must be above 0 and finite, got {self.gamma}")

    def stages(self) -> tuple[int, ...]:
        """The teacher, then the student."""
        return (self.epochs, self.epochs)

    def start(self, task: Task) -> "XERMLearner":
        """Two classifiers that know nothing."""
        return XERMLearner(self, task)


class CausalNormClassifier(nn.Module):
    """The classifier of the TDE variant, one head, with the settings of Places-LT; `losses.causal_norm_logits`.

    Args:
        n_features: D.
        n_classes: C.

    Attributes:
        weight: (C, D).
        mean: (D,), mean feature of the training pictures; only its direction counts.
    """

    mean: Tensor

    def __init__(self, n_features: int, n_classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_classes, n_features).uniform_(-1, 1) / n_features**0.5)
        self.register_buffer("mean", torch.zeros(n_features))

    def forward(self, features: Tensor) -> Tensor:
        """Total effect, (B, C) from (B, D)."""
        return causal_norm_logits(features, self.weight)

    def counterfactual(self, features: Tensor) -> Tensor:
        """Total direct effect, (B, C) from (B, D)."""
        return causal_norm_logits(features, self.weight, self.mean)


class XERMLearner(GradientLearner):
    """Teacher and student; `module` holds both."""

    settings: XERMClassifier
    module: nn.ModuleDict

    def __init__(self, settings: XERMClassifier, task: Task) -> None:
        self.settings, self.task = settings, task
        self.class_names = tuple(task.class_names)
        self.generator = torch.Generator(task.device).manual_seed(task.seed)
        self.memory = {}
        self.learning = "teacher"
        n_features, n_classes = task.image_features.shape[1], len(self.class_names)
        with torch.random.fork_rng():
            torch.manual_seed(task.seed)
            kind = nn.Linear if settings.variant == "pc" else CausalNormClassifier
            self.teacher, self.student = (kind(n_features, n_classes).to(task.image_features) for _ in range(2))
        self.criterion = losses.XERM(gamma=settings.gamma, eps=0.0)
        if len(task.labels):
            self._set_from_pictures(task)
        self.module = nn.ModuleDict({"teacher": self.teacher, "student": self.student})
        self.optimizer = self._new_optimizer()

    def _set_from_pictures(self, task: Task) -> None:
        """Take from the pictures what is not trained: how frequent the classes are, or the mean feature."""
        counts = torch.bincount(task.labels, minlength=len(self.class_names)).to(task.image_features)
        missing = [name for name, count in zip(self.class_names, counts.tolist(), strict=True) if not count]
        if missing:
            raise ValueError(f"xERM needs a picture of every class to learn from; {missing[0]!r} has none")
        if self.settings.variant == "pc":
            prior = counts / counts.sum()
            offset = prior_offset(prior, torch.full_like(prior, 1 / len(prior)))
            self.criterion = losses.XERM(offset, gamma=self.settings.gamma)
        for classifier in (self.teacher, self.student):
            if isinstance(classifier, CausalNormClassifier):
                classifier.mean.copy_(task.image_features.mean(0))

    def _new_optimizer(self) -> ProGradSGD:
        return self.new_sgd(self.module[self.learning].parameters())

    def epoch_ended(self, epoch: int) -> None:
        """After the teacher's last epoch, the student's turn begins."""
        if epoch == self.settings.epochs:
            self.learning = "student"
            self.optimizer = self._new_optimizer()

    def state_dict(self) -> dict[str, Tensor]:
        """See `GradientLearner`; and whose turn it is."""
        return {**super().state_dict(), "student": torch.tensor(self.learning == "student")}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take up what `state_dict` gave, in its stage."""
        super().load_state_dict(state)
        self.learning = "student" if self.memory.pop("student") else "teacher"
        self.optimizer = self._new_optimizer()

    def losses(self, image_features: Tensor, labels: Tensor) -> Losses:
        """The teacher's cross-entropy, or the student's `XERM`, of both views."""
        if self.learning == "teacher":
            logits = self.teacher(image_features)
            return Losses(F.cross_entropy(logits, labels), correct=count_correct(logits, labels))
        with torch.no_grad():
            factual = self.teacher(image_features)
            balanced = getattr(self.teacher, "counterfactual", None)
            counterfactual = None if balanced is None else balanced(image_features)
        logits = self.student(image_features)
        hard, soft = self.criterion(logits, factual, labels, counterfactual)
        terms = {"factual": hard.detach(), "counterfactual": soft.detach()}
        return Losses(hard + soft, None, terms, count_correct(logits, labels))

    def scores(self, class_names: Sequence[str]) -> Scores:
        """The student's logits."""
        check_classes(class_names, self.class_names)
        return lambda image_features: self.student(image_features.to(self.student.weight)).detach()
