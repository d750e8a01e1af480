"""CLIP-Adapter: a small network changes the image features, and the prompts classify them as before."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from prograd_fast.methods.base import Task
from prograd_fast.methods.cached_head import Head, Texts, TrainedHead


@dataclass(frozen=True)
class CLIPAdapter(TrainedHead):
    """Gao et al., IJCV 2024, arXiv:2110.04544; code gaopengcuhk/CLIP-Adapter, with its adapter of the image features.

        z = r · relu(relu(x W₁ᵀ) W₂ᵀ) + (1 - r) · x,   logits = s · u(z) u(t)ᵀ

    with W₁ (D/4, D), W₂ (D, D/4), no biases, and a ReLU behind both. Any class can be named, learned or not.

    The authors give x as the tower gives it, and the features of a `Task` are unit rows. That changes nothing: without
    biases z is as many times longer as x is, and the logits do not depend on the length of z. Nor do the gradients.
    The repository has no training settings; the defaults are those of jusiro/CLAP, which trains the same network.

    Attributes:
        ratio: r.
        reduction: D over the width of the hidden layer.

    Raises:
        ValueError: a setting is out of range.
    """

    lr: float = 0.1
    epochs: int = 300
    batch_size: int | None = 256
    warmup_epochs: int = 1
    ratio: float = 0.2
    reduction: int = 4

    name: ClassVar[str] = "clip-adapter"
    title: ClassVar[str] = "CLIP-Adapter"
    year: ClassVar[int | None] = 2024
    trains: ClassVar[str] = "a network on the image features"
    keeps: ClassVar[str] = "most of each image feature, and the text features"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.ratio <= 1:
            raise ValueError(f"ratio must be between 0 and 1, got {self.ratio}")
        if self.reduction < 1:
            raise ValueError(f"reduction must be 1 or more, got {self.reduction}")

    def head(self, task: Task, texts: Texts) -> "Adapted":
        """A random network."""
        return Adapted(Adapter(texts.unit.shape[1], self.reduction, self.ratio))


class Adapter(nn.Module):
    """z = r · relu(relu(x W₁ᵀ) W₂ᵀ) + (1 - r) · x.

    Args:
        width: D.
        reduction: D over the width of the hidden layer.
        ratio: r.
    """

    def __init__(self, width: int, reduction: int, ratio: float) -> None:
        super().__init__()
        hidden = max(1, width // reduction)
        self.down, self.up = nn.Linear(width, hidden, bias=False), nn.Linear(hidden, width, bias=False)
        self.ratio = ratio

    def forward(self, x: Tensor) -> Tensor:
        """(B, D) to (B, D)."""
        return torch.lerp(x, torch.relu(self.up(torch.relu(self.down(x)))), self.ratio)


class Adapted(Head):
    """The adapter before the zero-shot classifier."""

    def __init__(self, adapter: Adapter) -> None:
        super().__init__()
        self.adapter = adapter

    def forward(self, x: Tensor, texts: Texts) -> Tensor:
        """See `CLIPAdapter`."""
        return texts.logits_of_any_length(self.adapter(x))
