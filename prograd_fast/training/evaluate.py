"""How good a classifier is: top-1 accuracy on parts of a picture set."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from prograd_fast.methods import Learner, Scores
from prograd_fast.training.features import Features
from prograd_fast.training.protocol import Part

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


def evaluate_parts(
    learner: Learner, features: Features, parts: Mapping[str, Part], on_picture: Callable[[], None] = lambda: None
) -> dict[str, float]:
    """Accuracy of a learner on each part of a set, among the part's classes. Each class list is encoded once.

    Args:
        learner: The method at work.
        features: Of at least the pictures of all parts.
        parts: By name.
        on_picture: Called after each picture, for a progress bar.

    Returns:
        Top-1 accuracy in [0, 1] by name, and "harmonic mean" where there are "base" and "new".

    Raises:
        ValueError: the method cannot name the classes.
    """
    measured: dict[str, float] = {}
    scores: dict[tuple[str, ...], Scores] = {}
    for name, part in parts.items():
        class_names = part.class_names(features.pictures)
        if class_names not in scores:
            scores[class_names] = learner.scores(class_names)
        labels = part.labels(features.pictures).to(features.values.device)
        measured[name] = accuracy(scores[class_names], features.of(part.rows), labels, on_picture)
    if {"base", "new"} <= measured.keys():
        measured["harmonic mean"] = harmonic_mean(measured["base"], measured["new"])
    return measured


def harmonic_mean(base: float, new: float) -> float:
    """2·base·new / (base + new), the base-to-new benchmark's summary; 0 where either is 0."""
    return 2 * base * new / (base + new) if base and new else 0.0
