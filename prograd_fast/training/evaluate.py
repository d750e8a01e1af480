"""How good a classifier is."""

import torch
from torch import Tensor

from prograd_fast.methods import Scores


@torch.no_grad()
def accuracy(scores: Scores, image_features: Tensor, labels: Tensor) -> float:
    """Share of pictures whose highest score is their label's.

    Args:
        scores: The classifier.
        image_features: (N, D) unit rows.
        labels: (N,) int64, positions in the classifier's class list.

    Returns:
        Top-1 accuracy in [0, 1]; NaN for N = 0.
    """
    return (scores(image_features).argmax(1) == labels).double().mean().item()


def harmonic_mean(base: float, new: float) -> float:
    """2·base·new / (base + new), the base-to-new benchmark's summary; 0 where either is 0."""
    return 2 * base * new / (base + new) if base and new else 0.0
