"""How good a classifier is on parts of a picture set."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from prograd_fast.data import PictureSet
from prograd_fast.data.splits import Rows
from prograd_fast.methods import Learner, Scores
from prograd_fast.training.evaluation import KEPT, Evaluation, FloatArray, IntArray
from prograd_fast.training.features import Features
from prograd_fast.training.protocol import Part

BATCH = 100  # pictures scored at once, the papers' test batch: some methods hold a prompt of every class for each


def _in_batches(
    scores: Scores, image_features: Tensor | Iterable[Tensor], on_picture: Callable[[], None]
) -> Iterator[Tensor]:
    """(at most `BATCH`, C) scores of all pictures, one batch after the other."""
    for features in image_features.split(BATCH) if isinstance(image_features, Tensor) else image_features:
        yield scores(features)
        for _ in features:
            on_picture()


@torch.no_grad()
def accuracy(scores: Scores, image_features: Tensor, labels: Tensor) -> float:
    """Share of pictures whose highest score is their label's: the accuracy of an `Evaluation`, and nothing else.

    The pictures stream through the classifier in batches; the result is read from the device once.

    Args:
        scores: The classifier.
        image_features: (N, D) unit rows.
        labels: (N,) int64, positions in the classifier's class list.

    Returns:
        Top-1 accuracy in [0, 1]; NaN for N = 0.
    """
    found = torch.cat([values.argmax(1) for values in _in_batches(scores, image_features, lambda: None)])
    return (found == labels).double().mean().item()


class Ranking(NamedTuple):
    """The k most probable classes of N pictures, (N, k) each: their indices and their probabilities, in falling order.

    Of classes with equal scores the first comes first.
    """

    top: IntArray
    probabilities: FloatArray


@torch.no_grad()
def rank(
    scores: Scores,
    image_features: Tensor | Iterable[Tensor],
    k: int | None = None,
    on_picture: Callable[[], None] = lambda: None,
) -> Ranking:
    """Order the classes of each picture by score, and turn the scores into probabilities (softmax over all classes).

    Args:
        scores: The classifier.
        image_features: (N, D) unit rows, at least one; or the same in batches.
        k: Classes to keep; None for all.
        on_picture: Called after each picture, for a progress bar.
    """
    top, probabilities = [], []
    for values in _in_batches(scores, image_features, on_picture):
        order = values.sort(dim=1, descending=True, stable=True).indices[:, :k]
        top.append(order)
        wide = values if values.dtype == torch.float64 else values.float()
        probabilities.append(wide.softmax(1).gather(1, order).float())
    return Ranking(torch.cat(top).cpu().numpy(), torch.cat(probabilities).cpu().numpy())


def evaluate_parts(
    learner: Learner, features: Features, parts: Mapping[str, Part], on_picture: Callable[[], None] = lambda: None
) -> dict[str, Evaluation]:
    """Test a learner on each part of a set, among the part's classes. Each class list is encoded once.

    Args:
        learner: The method at work.
        features: Of at least the pictures of all parts.
        parts: By name, each with a picture or more.
        on_picture: Called after each picture, for a progress bar.

    Returns:
        The evaluations by name.

    Raises:
        ValueError: the method cannot name the classes.
    """
    pictures = features.pictures
    found: dict[str, Evaluation] = {}
    scores: dict[tuple[str, ...], Scores] = {}
    for name, part in parts.items():
        class_names = part.class_names(pictures)
        if class_names not in scores:
            scores[class_names] = learner.scores(class_names)
        top, probabilities = rank(scores[class_names], features.batches(part.rows, BATCH), KEPT, on_picture)
        labels, names = part.labels(pictures).numpy(), picture_names(pictures, part.rows)
        found[name] = Evaluation(class_names, labels, top[:, 0], probabilities, top, names)
    return found


def accuracies(evaluations: Mapping[str, Evaluation]) -> dict[str, float]:
    """Top-1 accuracy in [0, 1] by name, and "harmonic mean" where there are "base" and "new"."""
    measured = {name: evaluation.accuracy for name, evaluation in evaluations.items()}
    if {"base", "new"} <= measured.keys():
        measured["harmonic mean"] = harmonic_mean(measured["base"], measured["new"])
    return measured


def harmonic_mean(base: float, new: float) -> float:
    """2·base·new / (base + new), the base-to-new benchmark's summary; 0 where either is 0."""
    return 2 * base * new / (base + new) if base and new else 0.0


def picture_names(pictures: PictureSet, rows: Rows) -> tuple[str, ...]:
    """The names of pictures of a set: their path in the set's folder, or their index where there is no folder."""
    if pictures.folder is None:
        return tuple(map(str, rows.tolist()))
    files = [Path(pictures.source[row]) for row in rows.tolist()]  # a folder has files
    # the folder is absolute; its files are named as the user named it
    root = next((parent for parent in files[0].parents if parent.resolve() == pictures.folder), Path())
    return tuple(file.relative_to(root).as_posix() for file in files)
