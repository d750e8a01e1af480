"""Look at all pictures of a set before anything is trained on them."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from prograd_fast.data.alike import SIDE, Signatures, alike_pairs, signature
from prograd_fast.data.pictures import PictureSet

_PARTS = ("pool", "validation", "test")
NAMED = 3  # pictures or pairs that a sentence names
_DECODED_SIDE = 4 * SIDE


@dataclass(frozen=True)
class Check:
    """The findings in a set.

    Attributes:
        counts: a row for each class: its name, and the pictures in pool, validation and test.
        sizes: the smallest, the median and the largest picture that can be read, as text; "" without any.
        problems: sentences, each with a remedy; none if all is well.
        unreadable: a line for each picture that cannot be read, with the reason.
    """

    counts: list[tuple[str, tuple[int, ...]]]
    sizes: str
    problems: list[str]
    unreadable: list[str]


def check_pictures(
    pictures: PictureSet, unreadable: Sequence[str] = (), on_picture: Callable[[], object] = lambda: None
) -> Check:
    """Decode every picture of a set, and look for what spoils a test.

    Args:
        pictures: the set.
        unreadable: lines of files that were left out of it because they cannot be read.
        on_picture: called after each picture, for a progress bar.

    Returns:
        The counts, and a problem for: pictures that cannot be read; equal pictures in several classes, among the
        pictures for training (pool and validation) and the test pictures, or in one part of one class; pictures for
        training and testing that look alike.
    """
    lines = list(unreadable)

    def look(index: int) -> tuple[str, Signatures, tuple[int, int]] | None:
        try:
            digest, size = pictures.digest(index), pictures.size(index)
            with pictures.opened(index, _DECODED_SIDE) as image:
                return digest, signature(image), size
        except ValueError as error:
            lines.append(str(error))
            return None
        finally:
            on_picture()

    with ThreadPoolExecutor() as pool:
        looks = list(pool.map(look, range(len(pictures))))
    good = [row for row, seen in enumerate(looks) if seen is not None]
    found = [seen for seen in looks if seen is not None]
    digests, problems = [digest for digest, _, _ in found], []
    if lines:
        listed = "replace or remove those that are listed below" if len(lines) > NAMED else _some(sorted(lines))
        problems.append(f"{_pictures(len(lines))} cannot be read: {listed}")
    if found:
        kept = pictures.only(good)
        problems += _equal(kept, digests)
        problems += _alike(kept, digests, np.stack([seen for _, seen, _ in found]))
    counts = []
    for label, name in enumerate(pictures.class_names):
        own = pictures.split[good][pictures.labels[good] == label]
        counts.append((name, tuple(int((own == part).sum()) for part in _PARTS)))
    return Check(counts, _sizes([size for _, _, size in found]), problems, sorted(lines))


def _sizes(sizes: list[tuple[int, int]]) -> str:
    if not sizes:
        return ""
    ordered = [f"{w} x {h}" for w, h in sorted(sizes, key=lambda size: size[0] * size[1])]
    return f"{ordered[0]} (smallest), {ordered[len(ordered) // 2]} (median), {ordered[-1]} (largest)"


def _equal(pictures: PictureSet, digests: list[str]) -> list[str]:
    """Problems with pictures of the same content."""
    rows_of: dict[str, list[int]] = defaultdict(list)
    for row, digest in enumerate(digests):
        rows_of[digest].append(row)
    across, leaks, copies = [], [], []
    for rows in rows_of.values():
        if len(rows) < 2:
            continue
        named = " = ".join(_name(pictures, row) for row in rows[:NAMED])
        if len({int(pictures.labels[row]) for row in rows}) > 1:
            across.append(named)
        elif len({pictures.split[row] == "test" for row in rows}) > 1:
            leaks.append(named)
        else:
            copies.append(named)
    told = []
    if across:
        told.append(f"{_pictures(len(across))} in more than one class, keep each in one: {_some(across)}")
    if leaks:
        told.append(f"{_pictures(len(leaks))} for both training and testing, remove one of each: {_some(leaks)}")
    if copies:
        told.append(f"{_pictures(len(copies))} more than once in a class, remove the copies: {_some(copies)}")
    return told


def _alike(pictures: PictureSet, digests: list[str], signatures: Signatures) -> list[str]:
    """The problem of near duplicates between the pictures for training and those for testing; equal ones not again."""
    test, train = np.flatnonzero(pictures.split == "test"), np.flatnonzero(pictures.split != "test")
    pairs = [(int(test[i]), int(train[j])) for i, j in alike_pairs(signatures[test], signatures[train])]
    pairs = [(i, j) for i, j in pairs if digests[i] != digests[j]]
    if not pairs:
        return []
    n = len({i for i, _ in pairs})
    named = [f"{_name(pictures, i)} ~ {_name(pictures, j)}" for i, j in pairs]
    return [
        f"{_pictures(n)} for testing look{'s' * (n == 1)} like one for training, so that the test is too easy; remove "
        f"one of each, or split the folder yourself into train/ and test/: {_some(named)}"
    ]


def _pictures(n: int) -> str:
    return f"{n} picture{'s' * (n > 1)}"


def _name(pictures: PictureSet, row: int) -> str:
    source = pictures.source[row]
    if isinstance(source, bytes):
        return f"picture {row}"
    absolute = Path(source).absolute()
    root = pictures.folder
    return str(absolute.relative_to(root)) if root is not None and absolute.is_relative_to(root) else str(source)


def _some(named: list[str]) -> str:
    more = f" and {len(named) - NAMED} more" if len(named) > NAMED else ""
    return "; ".join(named[:NAMED]) + more
