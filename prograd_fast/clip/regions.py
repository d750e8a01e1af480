"""Boxes and patches of pictures as what prompts are trained on: features with labels, once encoded.

A method of `prograd_fast.methods` learns from rows of features, and does not ask what they are features of. The rows of
these caches go where those of whole pictures go: into a `Task`, or a loop of your own. For many patches and classes
`DualLoss.from_features` never stores the logits.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

BACKGROUND = -1  # the label of what is none of the classes


class Labelled(NamedTuple):
    """Rows to learn from.

    Attributes:
        features: (N, D) unit rows.
        labels: (N,) int64.
    """

    features: Tensor
    labels: Tensor


@dataclass(frozen=True)
class PatchCache:
    """The patches of pictures.

    Attributes:
        features: (N, P, D) unit rows, as of `patch_features` with its two axes of places flattened.
        labels: (N, P) int64, `BACKGROUND` where a patch is of no class.

    Raises:
        ValueError: the shapes do not agree, a label is below `BACKGROUND`, or a row of features has no unit length.
    """

    features: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        if self.features.ndim != 3:
            raise ValueError(f"features: expected (N, P, D), got {tuple(self.features.shape)}.")
        _check(self.features, self.labels)

    def foreground(self) -> Labelled:
        """The patches that are of a class."""
        there = self.labels != BACKGROUND
        return Labelled(self.features[there], self.labels[there])

    def background(self) -> Tensor:
        """(M, D), the features of the others, for `soft_background_loss`."""
        return self.features[self.labels == BACKGROUND]


@dataclass(frozen=True)
class BoxCache:
    """Proposed boxes, encoded as pictures of their own. DetPro: Du et al., CVPR 2022, arXiv:2203.14940.

    Attributes:
        features: (N, D) unit rows.
        labels: (N,) int64, the class of the true box that overlaps most; `BACKGROUND` where there is none.
        iou: (N,) in [0, 1], intersection over union with that box.

    Raises:
        ValueError: the shapes do not agree, a label is below `BACKGROUND`, an overlap is outside of [0, 1], or a row of
            features has no unit length.
    """

    features: Tensor
    labels: Tensor
    iou: Tensor

    def __post_init__(self) -> None:
        if self.features.ndim != 2:
            raise ValueError(f"features: expected (N, D), got {tuple(self.features.shape)}.")
        _check(self.features, self.labels)
        if self.iou.shape != self.labels.shape:
            raise ValueError(
                f"iou: expected one for each label, {tuple(self.labels.shape)}, got {tuple(self.iou.shape)}."
            )
        if not bool(((self.iou >= 0) & (self.iou <= 1)).all()):
            raise ValueError("iou: expected numbers from 0 to 1, got others.")

    def foreground(self, least: float = 0.5) -> Labelled:
        """The boxes of a class that overlap at least so much with its true box (default: DetPro's 0.5)."""
        there = (self.labels != BACKGROUND) & (self.iou >= least)
        return Labelled(self.features[there], self.labels[there])

    def background(self, least: float = 0.1, below: float = 0.5) -> Tensor:
        """(M, D), boxes that show a part of something but are no good box of it (defaults: DetPro's 0.1 and 0.5)."""
        return self.features[(self.iou >= least) & (self.iou < below)]

    def binned(self, edges: Sequence[float] = (0.5, 0.6, 0.7, 0.8, 0.9)) -> tuple[Labelled, ...]:
        """The foreground by overlap: from each edge up to the next, the last one up to 1.

        DetPro trains a prompt on each, and classifies by `mean_class_features` of all.
        """
        rows = []
        for low, high in zip(edges, (*edges[1:], float("inf")), strict=True):
            there = (self.labels != BACKGROUND) & (self.iou >= low) & (self.iou < high)
            rows.append(Labelled(self.features[there], self.labels[there]))
        return tuple(rows)


def mean_class_features(class_features: Sequence[Tensor]) -> Tensor:
    """(C, D) unit rows: the mean of several prompts' class features (C, D), each of unit rows, at unit length again."""
    return F.normalize(torch.stack([*class_features]).mean(0), dim=-1)


def soft_background_loss(logits: Tensor) -> Tensor:
    """Background belongs to each class as little as to any other: the cross-entropy to the uniform distribution.

        mean over rows of  -1/C Σ_c log softmax(logits)_c

    DetPro's soft background.

    Args:
        logits: (M, C), float; M = 0 gives 0.

    Returns:
        0-d, differentiable.
    """
    if not len(logits):
        return logits.sum()
    return -logits.log_softmax(-1).mean()


def _check(features: Tensor, labels: Tensor) -> None:
    if labels.shape != features.shape[:-1] or labels.dtype != torch.int64:
        raise ValueError(
            f"labels: expected int64 {tuple(features.shape[:-1])}, one for each row of features, got {labels.dtype} "
            f"{tuple(labels.shape)}."
        )
    if not bool((labels >= BACKGROUND).all()):
        raise ValueError(f"labels: expected class numbers, or {BACKGROUND} for background, got {int(labels.min())}.")
    if not bool(((features.float().norm(dim=-1) - 1).abs() < 1e-2).all()):
        raise ValueError("features: expected rows of unit length, got others. Call torch.nn.functional.normalize.")
