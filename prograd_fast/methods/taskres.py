"""TaskRes: a learned residual is added to the class features, whose own part stays what the text tower gave."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from prograd_fast.methods.base import Task
from prograd_fast.methods.cached_head import LinearHead, Texts, TrainedHead
from prograd_fast.methods.rows import unit_rows

PUBLISHED: Mapping[str, Any] = {"lr": 2e-3, "weight_decay": 5e-4, "batch_size": 256, "warmup_epochs": 1}


@dataclass(frozen=True)
class TaskRes(TrainedHead):
    """Yu et al., CVPR 2023, arXiv:2211.10277; code geekyutao/TaskRes.

        logits = s · u(x) u(t + a·R)ᵀ

    with unit rows u(·), the logit scale s, the residual R, zero at the start, and t the mean of the text features over
    the templates, not normalised: how far a step of R turns a class depends on the length of t. Trained by Adam, whose
    weight decay is part of the gradient. The defaults are the authors', for 8 and 16 shots.

    Attributes:
        scale: a; 0.5 in the authors' scripts, 1 on Oxford Flowers.
    """

    lr: float = 2e-3
    weight_decay: float = 5e-4
    epochs: int = 200
    batch_size: int | None = 256
    warmup_epochs: int = 1
    scale: float = 0.5

    name: ClassVar[str] = "taskres"
    title: ClassVar[str] = "TaskRes"
    year: ClassVar[int | None] = 2023
    trains: ClassVar[str] = "a residual of each class feature"
    keeps: ClassVar[str] = "text features, to which it is added"
    names_new_classes: ClassVar[bool] = False
    optimizer = "adam"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        **{f"{shots}-shot": {**PUBLISHED, "epochs": 100 if shots < 8 else 200} for shots in (1, 2, 4, 8, 16)},
        "16-shot-flowers": {**PUBLISHED, "epochs": 200, "scale": 1.0},
        "16-shot-imagenet": {**PUBLISHED, "epochs": 200, "lr": 2e-4},
    }

    def head(self, task: Task, texts: Texts) -> "Residual":
        """The residual, zero."""
        return Residual(torch.zeros_like(texts.mean), self.scale)


class Residual(LinearHead):
    """(C, D) residual."""

    def __init__(self, residual: Tensor, scale: float) -> None:
        super().__init__()
        self.residual, self.scale = nn.Parameter(residual), scale

    def linear(self, texts: Texts) -> tuple[Tensor, float, None]:
        """The unit rows of t + a·R."""
        return unit_rows(texts.mean + self.scale * self.residual), texts.scale, None
