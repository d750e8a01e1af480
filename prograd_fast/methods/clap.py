"""CLAP and ZS-LP: a linear probe that starts as the zero-shot classifier; CLAP holds each class near its start."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prograd_fast.methods.base import Task
from prograd_fast.methods.cached_head import LinearHead, Texts, TrainedHead, TrainedHeadLearner, class_counts
from prograd_fast.methods.rows import unit_rows

Weights = Literal["l2", "corrected", "constant", "balanced"]


@dataclass(frozen=True)
class ZSLP(TrainedHead):
    """Silva-Rodríguez et al., CVPR 2024, arXiv:2312.12730, their baseline; code jusiro/CLAP.

        logits = s · u(x) u(W)ᵀ

    with unit rows u(·) and the logit scale s. The prototypes W start as t, the mean of the text features over the
    templates, not normalised. The defaults are the authors'. They train on 20 augmented views of the pictures, as many
    in an epoch as there are pictures; views are `TrainOptions.views` here.
    """

    lr: float = 0.1
    epochs: int = 300
    batch_size: int | None = 256
    warmup_epochs: int = 1

    name: ClassVar[str] = "zs-lp"
    title: ClassVar[str] = "ZS-LP"
    year: ClassVar[int | None] = 2024
    trains: ClassVar[str] = "a prototype of each class"
    keeps: ClassVar[str] = "nothing but the start, zero-shot"
    names_new_classes: ClassVar[bool] = False
    differs: ClassVar[str] = "The authors see each of 20 stored crops about once in 20 epochs."

    def head(self, task: Task, texts: Texts) -> LinearHead:
        """The text features as prototypes."""
        return Prototypes(texts.mean.clone())


@dataclass(frozen=True)
class CLAP(ZSLP):
    """Silva-Rodríguez et al., CVPR 2024, arXiv:2312.12730; code jusiro/CLAP. No validation pictures are needed.

    `ZSLP` whose rows are held near their starts t_c:

        loss = CE + mean over c of λ_c ‖W_c - t_c‖²

    λ_c is the mean probability that zero-shot gives to class c for the pictures of c, and is computed once.

    Attributes:
        weights: "l2": λ_c. "corrected": λ_c · C / Σ λ. "constant": all the mean of λ. "balanced": all 1.
        adaptive: Whether each epoch ends with a step of the multipliers, λ ← max(λ + ρ·h, 0), ρ ← h with
            h_c = ‖W_c - t_c‖² and ρ = 0 at first (the authors' "adaptative").

    Raises:
        ValueError: a setting is out of range; by `start`: a class has no picture, so that its λ is not defined.
    """

    weights: Weights = "l2"
    adaptive: bool = False

    name: ClassVar[str] = "clap"
    title: ClassVar[str] = "CLAP"
    keeps: ClassVar[str] = "prototypes near the text features, by a penalty"

    @torch.no_grad()
    def head(self, task: Task, texts: Texts) -> "Anchored":
        """The text features as prototypes, and the weights of their distances."""
        head = Anchored(texts.mean.clone())
        if len(task.labels):
            class_counts(task, self.title)
            head.multipliers.copy_(class_weights(head(task.image_features, texts), task.labels, self.weights))
        return head

    def epoch_ended(self, learner: TrainedHeadLearner, epoch: int) -> None:
        """The step of the multipliers."""
        head = learner.module
        if self.adaptive and isinstance(head, Anchored):
            head.outer_step()


def class_weights(zero_shot_logits: Tensor, labels: Tensor, weights: Weights = "l2") -> Tensor:
    """λ of `CLAP`, (C,), from (N, C) logits and (N,) labels in which every class occurs."""
    probabilities = zero_shot_logits.softmax(1)
    one_hot = F.one_hot(labels, probabilities.shape[1]).to(probabilities)
    own = (probabilities * one_hot).sum(0) / one_hot.sum(0)
    if weights == "corrected":
        return own * len(own) / own.sum()
    if weights == "constant":
        return own.mean().expand_as(own)
    return torch.ones_like(own) if weights == "balanced" else own


class Prototypes(LinearHead):
    """(C, D) prototypes, not normalised."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def linear(self, texts: Texts) -> tuple[Tensor, float, None]:
        """The prototypes as unit rows."""
        return unit_rows(self.weight), texts.scale, None


class Anchored(Prototypes):
    """Prototypes with a weight for the distance of each from its start."""

    multipliers: Tensor
    steps: Tensor
    start: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__(weight)
        self.register_buffer("start", weight.clone(), persistent=False)
        self.register_buffer("multipliers", torch.zeros_like(weight[:, 0]))
        self.register_buffer("steps", torch.zeros_like(weight[:, 0]))

    def distances(self) -> Tensor:
        """(C,) squared distances from the start."""
        return F.mse_loss(self.weight, self.start, reduction="none").sum(1)

    def terms(self, texts: Texts) -> Mapping[str, Tensor]:
        """The weighted mean of the distances."""
        return {"constraint": (self.multipliers * self.distances()).mean()}

    @torch.no_grad()
    def outer_step(self) -> None:
        """λ ← max(λ + ρ·h, 0), ρ ← h."""
        distances = self.distances()
        self.multipliers.addcmul_(self.steps, distances).clamp_(min=0)
        self.steps.copy_(distances)
