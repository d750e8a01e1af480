"""Cross-modal adaptation: the class names are samples too, and a linear classifier learns from texts and pictures."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prograd_fast.methods.base import Scores, Task
from prograd_fast.methods.cached_head import Head, LinearHead, Texts, TrainedHead
from prograd_fast.methods.clip_adapter import Adapter


@dataclass(frozen=True)
class CrossModal(TrainedHead):
    """Lin et al., CVPR 2023, arXiv:2301.06267; code linzhiqiu/cross_modal_adaptation, its linear head.

        logits = s · x Wᵀ,   loss = ½ mean cross-entropy of the pictures + ½ mean cross-entropy of the texts

    with unit rows x. W starts as zero-shot's classifier, the unit rows of the mean over the templates, and is not
    normalised again. The texts are the unit features of each class in each template. The authors draw half of a batch
    from the pictures and half from the texts, which is this loss in the mean; here all texts are in every step. s is
    the model's logit scale (the authors write e^4.60517 = 100, which is CLIP's).

    Trained by AdamW at a rate that rises linearly in `warmup_steps` steps and then falls along a half cosine, step by
    step. The authors take 12,800 steps of 4 pictures and 4 texts, and choose rate, weight decay and step on validation
    pictures (`TrainOptions.patience` for the last). The defaults take fewer steps, of all pictures.

    Attributes:
        warmup_steps: Steps in which the rate rises; the first one is at `warmup_lr`.
        adapter: Whether a network like CLIP-Adapter's changes the features of pictures and texts before W, x' =
            0.2 · relu(relu(x W₁ᵀ) W₂ᵀ) + 0.8 · x, which is not normalised again (the authors' "adapter" head).
        wise: Share w of the trained classifier in w · W + (1 - w) · zero-shot's, which is tested; WiSE-FT's, 0.5 in the
            authors' second result. Training does not know of it.

    Raises:
        ValueError: a setting is out of range.
    """

    lr: float = 1e-3
    weight_decay: float = 0.01
    epochs: int = 300
    warmup_steps: int = 50
    adapter: bool = False
    wise: float = 1.0

    name: ClassVar[str] = "cross-modal"
    title: ClassVar[str] = "cross-modal probe"
    year: ClassVar[int | None] = 2023
    trains: ClassVar[str] = "a linear classifier, on pictures and texts"
    keeps: ClassVar[str] = "the texts among what is learned from"
    names_new_classes: ClassVar[bool] = False
    optimizer = "adamw"
    schedule_by = "step"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.warmup_steps < 0:
            raise ValueError(f"warmup_steps must be 0 or more, got {self.warmup_steps}")
        if not 0 <= self.wise <= 1:
            raise ValueError(f"wise must be between 0 and 1, got {self.wise}")

    def head(self, task: Task, texts: Texts) -> Head:
        """Zero-shot's classifier, and the network where there is one."""
        probe = Probe(F.normalize(texts.mean, dim=-1), self.wise)
        return AdaptedProbe(Adapter(texts.mean.shape[1], 4, 0.2), probe) if self.adapter else probe

    def rate(self, time: int, total: int) -> float:
        """See `GradientMethod`."""
        if time < self.warmup_steps:
            return time / self.warmup_steps if time else self.warmup_lr / self.lr
        return (1 + math.cos(math.pi * (time - self.warmup_steps) / total)) / 2


class Probe(LinearHead):
    """(C, D) weight W, which starts as zero-shot's; see `CrossModal`."""

    picture_weight = 0.5

    def __init__(self, start: Tensor, wise: float) -> None:
        super().__init__()
        self.weight, self.wise = nn.Parameter(start), wise

    def forward(self, x: Tensor, texts: Texts) -> Tensor:
        """S · x Wᵀ."""
        return texts.scale * (x @ self.weight.T)

    def terms(self, texts: Texts) -> Mapping[str, Tensor]:
        """The texts' half of the loss."""
        return {"texts": text_half(self, texts)}

    def linear(self, texts: Texts) -> tuple[Tensor, float, None]:
        """W · W + (1 - w) · zero-shot's."""
        start = F.normalize(texts.mean, dim=-1)
        return self.wise * self.weight + (1 - self.wise) * start, texts.scale, None


class AdaptedProbe(Head):
    """The network before the probe."""

    picture_weight = 0.5

    def __init__(self, adapter: Adapter, probe: Probe) -> None:
        super().__init__()
        self.adapter, self.probe = adapter, probe

    def forward(self, x: Tensor, texts: Texts) -> Tensor:
        """The probe's logits of what the network makes of the features."""
        return self.probe(self.adapter(x), texts)

    def terms(self, texts: Texts) -> Mapping[str, Tensor]:
        """The texts' half of the loss."""
        return {"texts": text_half(self, texts)}

    def classifier(self, texts: Texts) -> Scores:
        """See `Head`."""
        probe = self.probe.classifier(texts)
        return lambda x: probe(self.adapter(x))


def text_half(head: Head, texts: Texts) -> Tensor:
    """Half of the mean cross-entropy of every class in every template."""
    n_templates, n_classes, width = texts.embeddings.shape
    rows = F.normalize(texts.embeddings, dim=-1).view(-1, width)
    labels = torch.arange(n_classes, device=rows.device).repeat(n_templates)
    return F.cross_entropy(head(rows, texts), labels) / 2
