"""How good a classifier is."""

from collections.abc import Callable

import torch
from torch import Tensor

from prograd_fast.methods import Scores

BATCH = 100  # pictures scored at once, the papers' test batch: some methods hold a prompt of every class for each


@torch.no_grad()
def accuracy(
    scores: Scores, image_features: Tensor, labels: Tensor, on_picture: Callable[[], None] = lambda: None
) -> float:
    """Share of pictures whose highest score is their label's.

    The pictures stream through the classifier in batches; the result is read from the device once.

    Args:
        scores: The classifier.
        image_features: (N, D) unit rows.
        labels: (N,) int64, positions in the classifier's class list.
        on_picture: Called after each picture, for a progress bar.

    Returns:
        Top-1 accuracy in [0, 1]; NaN for N = 0.
    """
    right = []
    for features, expected in zip(image_features.split(BATCH), labels.split(BATCH), strict=True):
        right.append(scores(features).argmax(1) == expected)
        for _ in expected:
            on_picture()
    return torch.cat(right).double().mean().item()


def harmonic_mean(base: float, new: float) -> float:
    """2·base·new / (base + new), the base-to-new benchmark's summary; 0 where either is 0."""
    return 2 * base * new / (base + new) if base and new else 0.0
