"""Base / new classes and few-shot samples, the same on every machine.

Both use `numpy.random.RandomState`, whose stream NumPy promises never to change.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from prograd_fast.data.pictures import PictureSet

Rows = npt.NDArray[np.int64]

MAX_SEED = 2**32 - 1  # RandomState takes no more
MOST_SHOTS = 1_000_000_000  # pictures per class
FIRST_PARTITION_SEED = 100  # keeps the partitions' streams apart from those of the shots' seeds
MAX_PARTITION = MAX_SEED - FIRST_PARTITION_SEED


def base_and_new(n_classes: int, partition: int) -> tuple[Rows, Rows]:
    """Cut the classes into two random halves: base, to be trained on, and new, to be tested on only.

    Args:
        n_classes: C, at least 2. With an odd C the new half is the larger one.
        partition: Which of the random partitions, 0, 1, ...

    Returns:
        Sorted class indices of the base and of the new half, int64.

    Raises:
        ValueError: `n_classes` < 2, or `partition` is negative or above `MAX_PARTITION`.
    """
    _check_halves(n_classes)
    if not 0 <= partition <= MAX_PARTITION:
        raise ValueError(f"partition must be between 0 and {MAX_PARTITION}, got {partition}")
    order = np.random.RandomState(FIRST_PARTITION_SEED + partition).permutation(n_classes)
    return np.sort(order[: n_classes // 2]), np.sort(order[n_classes // 2 :])


def first_half(n_classes: int) -> tuple[Rows, Rows]:
    """Cut the classes into the published halves: base, the first ceil(C/2) in the order of the labels, and new.

    KaiyangZhou/CoOp: `subsample_classes` in datasets/oxford_pets.py.

    Args:
        n_classes: C, at least 2.

    Returns:
        Class indices of the base and of the new half, int64.

    Raises:
        ValueError: `n_classes` < 2.
    """
    _check_halves(n_classes)
    order = np.arange(n_classes)
    return order[: (n_classes + 1) // 2], order[(n_classes + 1) // 2 :]


def _check_halves(n_classes: int) -> None:
    if n_classes < 2:
        raise ValueError(f"base and new classes need at least 2 classes, got {n_classes}")


def rows_of(
    pictures: PictureSet, split: str, classes: Sequence[int] | Rows, styles: Sequence[str] | None = None
) -> Rows:
    """Indices of the pictures in one split that are of these classes (and styles; None: any), in order, int64."""
    chosen = (pictures.split == split) & np.isin(pictures.labels, classes)
    if styles is not None:
        chosen &= np.isin(pictures.style, styles)
    return np.flatnonzero(chosen)


def long_tail(n_classes: int, ratio: float, seed: int) -> npt.NDArray[np.float64]:
    """Frequency of each class in a long-tailed set, relative to the most frequent class.

    The usual exponential profile: ratio^(-rank / (C - 1)), the ranks in random order.

    Args:
        n_classes: C.
        ratio: of the most to the least frequent class, at least 1.
        seed: which random order, 0, 1, ...

    Returns:
        (C,), from 1 / ratio to 1.

    Raises:
        ValueError: `ratio` < 1, or `seed` is out of range.
    """
    if not 1 <= ratio < float("inf"):
        raise ValueError(f"imbalance must be 1 or more and finite, got {ratio}")
    ranks = _random(seed).permutation(n_classes)
    return ratio ** (-ranks / max(1, n_classes - 1))


def few_shot(
    pictures: PictureSet,
    classes: Sequence[int] | Rows,
    shots: int | Sequence[int] | Rows,
    seed: int,
    styles: Sequence[str] | None = None,
    split: str = "pool",
) -> Rows:
    """Draw `shots` pictures of each class from the pool.

    A class whose pool holds fewer gives all that it has: compare the result's length with `shots * len(classes)`.

    Args:
        pictures: The set.
        classes: Indices of the classes to draw for.
        shots: Pictures per class, from 1 to `MOST_SHOTS`; one number, or one for each class.
        seed: Which random draw, 0, 1, ...
        styles: Styles to draw from; None means any.
        split: The split to draw from instead of the pool.

    Returns:
        Indices into the set, class by class, int64.

    Raises:
        ValueError: `shots` or `seed` is out of range, or a class has no picture in the pool.
    """
    if not np.all(np.greater_equal(shots, 1)):
        raise ValueError(f"shots must be 1 or more, got {shots}")
    if not np.all(np.less_equal(shots, MOST_SHOTS)):
        raise ValueError(f"shots must be at most {MOST_SHOTS}, got {shots}")
    counts = np.broadcast_to(shots, len(classes))
    random = _random(seed)
    drawn = []
    for label, count in zip(classes, counts, strict=True):
        pool = rows_of(pictures, split, [label], styles)
        if not len(pool):
            raise ValueError(f"{pictures.name}: class {pictures.class_names[label]!r} has no picture to learn from")
        drawn.append(random.permutation(pool)[:count])
    return np.concatenate(drawn)


def _random(seed: int) -> np.random.RandomState:
    if not 0 <= seed <= MAX_SEED:
        raise ValueError(f"seed must be between 0 and {MAX_SEED}, got {seed}")
    return np.random.RandomState(seed)
