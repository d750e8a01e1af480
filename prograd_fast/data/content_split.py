"""The split of a user's pictures: each picture goes where its content says, whatever else is in the folder."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

TEST_SHARE, VALIDATION_SHARE = 0.4, 0.1


def split_by_content(
    digests: Sequence[str],
    labels: NDArray[np.int64],
    test_share: float = TEST_SHARE,
    fold: tuple[int, int] | None = None,
) -> NDArray[np.str_]:
    """Split pictures by the hashes of their content, so that more pictures never move those that were there.

    A hash is a number u in [0, 1). Below `test_share` the picture is for testing, in the tenth above it for validation,
    else it is in the pool. Equal pictures stay together. A class without a picture in the pool gets that of the largest
    u into it; one without a test picture gets that of the smallest u: only there can a new picture move others.

    Folds deal the pictures of each class out in the order of their u: each is tested once, and no fold has more than
    one picture of a class above another. There a new picture moves others.

    Args:
        digests: N SHA-256 digests, 64 hexadecimal digits each.
        labels: (N,) the classes.
        test_share: More than 0 and less than 0.9.
        fold: (k, n): fold k (0, 1, ..., n - 1) of n is for testing, the others are the pool.

    Returns:
        (N,) "pool", "validation" or "test". A class of equal pictures alone is where its u says, whole.

    Raises:
        ValueError: the share or the fold is out of range, or the fold has no picture.
    """
    if not 0 < test_share < 1 - VALIDATION_SHARE:
        raise ValueError(
            f"test share: expected more than 0 and less than {1 - VALIDATION_SHARE} (a tenth is for validation), "
            f"got {test_share}"
        )
    if fold is not None and not (fold[1] >= 2 and 0 <= fold[0] < fold[1]):
        raise ValueError(f"fold: expected (k, n) with n of 2 or more and k from 0 to n - 1, got {fold}")
    u = np.array([int(digest, 16) / 2**256 for digest in digests])
    if fold is not None:
        return _dealt(u, labels, *fold)
    split = np.where(u < test_share, "test", np.where(u < test_share + VALIDATION_SHARE, "validation", "pool"))
    split = split.astype("U10")
    for label in np.unique(labels):
        own = labels == label
        lowest, highest = u[own].min(), u[own].max()
        if lowest < highest:
            if not np.any(split[own] == "pool"):
                split[own & (u == highest)] = "pool"
            if not np.any(split[own] == "test"):
                split[own & (u == lowest)] = "test"
    return split


def _dealt(u: NDArray[np.float64], labels: NDArray[np.int64], k: int, n: int) -> NDArray[np.str_]:
    """The split of fold k of n; classes begin at different folds, so that small ones do not all miss the last."""
    fold_of = np.empty(len(u), np.int64)
    for label in np.unique(labels):
        own = labels == label
        fold_of[own] = (np.unique(u[own], return_inverse=True)[1] + label) % n
    if not np.any(fold_of == k):
        raise ValueError(f"fold: {len(u)} pictures are too few for {n} folds, of which fold {k} has none; take fewer")
    return np.where(fold_of == k, "test", "pool")
