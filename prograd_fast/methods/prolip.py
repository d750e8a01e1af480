"""ProLIP: the last step of the image tower, its projection, is trained, and held near where it was."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prograd_fast.clip.before_projection import visual_projection
from prograd_fast.methods.base import Task
from prograd_fast.methods.cached_head import Head, Texts, TrainedHead


@dataclass(frozen=True)
class ProLIP(TrainedHead):
    """Fahes et al. 2024, arXiv:2410.05270; code astra-vision/ProLIP.

        z = x P + bias,   logits = s · u(z) tᵀ,   loss = cross-entropy + w · Σ (P - P₀)²

    x (B, Do) are the image features before the projection P (Do, D) of the tower, and P₀ is what P was. The bias, which
    ResNets have, stays. s is the model's logit scale (the authors write 100, which is CLIP's). Any class can be named.
    Trained by Adam with ε = 1e-4. The defaults are the authors', without validation pictures, with all pictures in a
    step. They take another of 300 views of each picture in each epoch: `TrainOptions.views`.

    The features of a task are unit rows of x, or of (x, 1) where there is a bias (`LoadedClip.before_projection`): z is
    the same but for its length, of which nothing depends.

    Attributes:
        weight: w; None: 1 over the pictures per class.

    Raises:
        ValueError: a setting is out of range; by `start`: the image tower has no projection.
    """

    lr: float = 1e-5
    epochs: int = 300
    weight: float | None = None

    name: ClassVar[str] = "prolip"
    title: ClassVar[str] = "ProLIP"
    year: ClassVar[int | None] = 2024
    trains: ClassVar[str] = "the visual projection"
    keeps: ClassVar[str] = "the projection near where it was, by a penalty; the text features"
    before_projection: ClassVar[bool] = True
    optimizer = "adam"
    eps = 1e-4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.weight is not None and self.weight < 0:
            raise ValueError(f"weight must be 0 or more, got {self.weight}")

    def head(self, task: Task, texts: Texts) -> "Projection":
        """The model's own projection."""
        weight, bias = visual_projection(task.model)
        shots = max(1.0, len(task.labels) / len(texts.names))
        penalty = 1 / shots if self.weight is None else self.weight
        return Projection(weight.to(texts.unit), None if bias is None else bias.to(texts.unit), penalty)


class Projection(Head):
    """P (Do, D), the bias (D,) or None, and the weight of the penalty."""

    start: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None, penalty: float) -> None:
        super().__init__()
        self.weight, self.penalty = nn.Parameter(weight.clone()), penalty
        self.register_buffer("start", weight.clone(), persistent=False)
        self.register_buffer("bias", bias, persistent=False)

    def forward(self, x: Tensor, texts: Texts) -> Tensor:
        """See `ProLIP`."""
        return texts.logits_of_any_length(self._projected(x, self.weight))

    def teacher_logits(self, x: Tensor, texts: Texts) -> Tensor:
        """Logits of the projection as it was."""
        return texts.logits_of_any_length(self._projected(x, self.start))

    def _projected(self, x: Tensor, weight: Tensor) -> Tensor:
        """z, (B, D)."""
        rows = weight if self.bias is None else torch.cat([weight, self.bias[None]])
        if x.shape[-1] != len(rows):
            raise ValueError(
                f"image_features: expected those before the projection, {len(rows)} wide, got {x.shape[-1]}. Encode "
                "the pictures by LoadedClip.before_projection()."
            )
        return x @ rows

    def terms(self, texts: Texts) -> dict[str, Tensor]:
        """The penalty."""
        return {"penalty": self.penalty * F.mse_loss(self.weight, self.start, reduction="sum")}
