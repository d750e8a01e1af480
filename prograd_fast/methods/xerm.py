"""xERM: a classifier for a long tail of classes learns from a biased and a balanced view of a frozen teacher."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prograd_fast.methods.base import GradientLearner, GradientMethod, Losses, Scores, Task
from prograd_fast.methods.linear_probe import check_classes
from prograd_fast.optim import ProGradSGD

Variant = Literal["pc", "tde"]


@dataclass(frozen=True)
class XERM(GradientMethod):
    """Zhu et al., AAAI 2022, arXiv:2112.14380; code BeierZhu/xERM. Here with linear classifiers on the image features.

    The first stage trains the teacher on the labels; its logits f are biased towards frequent classes. The second stage
    trains the student on `xerm_loss` with f and balanced logits c. For other classifiers, take the functions below.

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
    names_new_classes: ClassVar[bool] = False
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "cifar100-lt": {"variant": "pc", "gamma": 1.5, "weight_decay": 1e-4},
        "imagenet-lt": {"variant": "pc", "gamma": 2.0},
        "places-lt": {"variant": "tde", "gamma": 2.0},
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.variant not in ("pc", "tde"):
            raise ValueError(f"variant must be 'pc' or 'tde', got {self.variant!r}")
        if not 0 < self.gamma < float("inf"):
            raise ValueError(f"gamma must be above 0 and finite, got {self.gamma}")

    def stages(self) -> tuple[int, ...]:
        """The teacher, then the student."""
        return (self.epochs, self.epochs)

    def start(self, task: Task) -> "XERMLearner":
        """Two classifiers that know nothing."""
        return XERMLearner(self, task)


def prior_compensated(factual: Tensor, prior_train: Tensor, prior_test: Tensor) -> Tensor:
    """C = f - log π_train + log π_test: what the teacher would say if classes were as frequent as at the test.

    Args:
        factual: f, (..., C).
        prior_train: π_train, (C,), above 0.
        prior_test: π_test, (C,), above 0.
    """
    return factual - prior_train.log() + prior_test.log()


class CausalNormClassifier(nn.Module):
    """A cosine-like classifier, and what it says when the mean feature's direction is taken out.

        w̃ = w / (‖w‖ + γ'),  x̃ = x / ‖x‖,  y_TE = τ x̃·w̃,  y_TDE = τ (x̃ - α cos(x, m) m̂)·w̃

    Source: `BeierZhu/xERM:xERM.TDE.public/models/CausalNormClassifier.py`, with one head.

    Args:
        n_features: D.
        n_classes: C.
        tau: τ (default: 16, as are the others, theirs for Places-LT).
        alpha: α.
        norm_gamma: γ'.

    Attributes:
        weight: (C, D).
        mean: m, (D,), mean feature of the training pictures; only its direction counts.
    """

    mean: Tensor

    def __init__(
        self, n_features: int, n_classes: int, tau: float = 16.0, alpha: float = 2.0, norm_gamma: float = 1 / 32
    ) -> None:
        super().__init__()
        self.tau, self.alpha, self.norm_gamma = tau, alpha, norm_gamma
        self.weight = nn.Parameter(torch.empty(n_classes, n_features).uniform_(-1, 1) / n_features**0.5)
        self.register_buffer("mean", torch.zeros(n_features))

    def forward(self, features: Tensor) -> Tensor:
        """y_TE, (B, C) from (B, D)."""
        return self.tau * F.normalize(features, dim=-1) @ self._directions().T

    def counterfactual(self, features: Tensor) -> Tensor:
        """y_TDE, (B, C) from (B, D)."""
        x, mean = F.normalize(features, dim=-1), F.normalize(self.mean, dim=-1)
        return self.tau * (x - self.alpha * (x @ mean)[:, None] * mean) @ self._directions().T

    def _directions(self) -> Tensor:
        return self.weight / (self.weight.norm(dim=1, keepdim=True) + self.norm_gamma)


def xerm_loss(
    student: Tensor, factual: Tensor, counterfactual: Tensor, labels: Tensor, gamma: float, eps: float = 1e-5
) -> Tensor:
    """mean_i w_c·CE(softmax(c) → z) + w_f·CE(z, y) with w_c = ℓ_c/(ℓ_c + ℓ_f + ε), w_f = 1 - w_c, ℓ = CE(·, y)^γ.

    Args:
        student: z, (B, C).
        factual: f, (B, C), of the frozen teacher.
        counterfactual: c, (B, C), balanced.
        labels: y, (B,) int64.
        gamma: γ.
        eps: ε: 1e-5 in the authors' PC code, 0 in their TDE code, which gives NaN where both losses are 0.
    """
    with torch.no_grad():
        biased = F.cross_entropy(factual, labels, reduction="none").pow(gamma)
        balanced = F.cross_entropy(counterfactual, labels, reduction="none").pow(gamma)
        weight = (balanced / (balanced + biased + eps)).where(balanced != 0, 0.0)
        soft = counterfactual.softmax(-1)
    hard_loss = F.cross_entropy(student, labels, reduction="none")
    soft_loss = F.cross_entropy(student, soft, reduction="none")
    return (weight * soft_loss + (1 - weight) * hard_loss).mean()


class XERMLearner(GradientLearner):
    """Teacher and student; `module` holds both."""

    settings: XERM
    module: nn.ModuleDict

    def __init__(self, settings: XERM, task: Task) -> None:
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
        counts = torch.bincount(task.labels, minlength=n_classes).to(task.image_features)
        if len(task.labels):
            missing = [name for name, count in zip(self.class_names, counts.tolist(), strict=True) if not count]
            if missing:
                raise ValueError(f"xERM needs a picture of every class to learn from; {missing[0]!r} has none")
            for classifier in (self.teacher, self.student):
                if isinstance(classifier, CausalNormClassifier):
                    classifier.mean.copy_(task.image_features.mean(0))
        self.prior = counts / counts.sum()
        self.module = nn.ModuleDict({"teacher": self.teacher, "student": self.student})
        self.optimizer = self._new_optimizer()

    def _new_optimizer(self) -> ProGradSGD:
        settings = self.settings
        parameters = self.module[self.learning].parameters()
        return ProGradSGD(parameters, lr=settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay)

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
        """The teacher's cross-entropy, or the student's `xerm_loss`."""
        if self.learning == "teacher":
            return Losses(F.cross_entropy(self.teacher(image_features), labels))
        with torch.no_grad():
            factual = self.teacher(image_features)
            if isinstance(self.teacher, CausalNormClassifier):
                counterfactual = self.teacher.counterfactual(image_features)
            else:
                uniform = torch.full_like(self.prior, 1 / len(self.prior))
                counterfactual = prior_compensated(factual, self.prior, uniform)
        student = self.student(image_features)
        return Losses(xerm_loss(student, factual, counterfactual, labels, self.settings.gamma))

    def scores(self, class_names: Sequence[str]) -> Scores:
        """The student's logits."""
        check_classes(class_names, self.class_names)
        return lambda image_features: self.student(image_features.to(self.prior)).detach()
