"""Who learns from which pictures, and which pictures are the test."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from prograd_fast.data import EMOJI_TASK_STYLES, EMOJI_UNSEEN_STYLES, PictureSet
from prograd_fast.data.published_draws import Draw, coop_draw
from prograd_fast.data.splits import Rows, base_and_new, few_shot, first_half, long_tail, rows_of


@dataclass(frozen=True)
class Part:
    """Pictures to classify among some classes.

    Attributes:
        classes: sorted class indices, int64.
        rows: indices of the pictures in their set, int64.
    """

    classes: Rows
    rows: Rows

    def class_names(self, pictures: PictureSet) -> tuple[str, ...]:
        """Readable names, in the order of `classes`."""
        return tuple(pictures.class_names[label] for label in self.classes)

    def labels(self, pictures: PictureSet) -> Tensor:
        """(len(rows),) int64: positions in `classes`."""
        return torch.from_numpy(np.searchsorted(self.classes, pictures.labels[self.rows]))

    def contents(self, pictures: PictureSet) -> frozenset[str]:
        """`PictureSet.digest` of each picture that can be read."""
        return frozenset(digest for _, digest in _readable(pictures, self.rows))


@dataclass(frozen=True)
class Plan:
    """One run's pictures.

    Attributes:
        shots: pictures per class that were asked for; a class whose pool holds fewer gives fewer.
        seed: which random draw of the shots.
        partition: which random halves of base and new classes, or None where all classes are learned.
        imbalance: how many times more pictures the most frequent class has than the least frequent one (long-tailed
            training), or None where all have `shots`.
        train: what is learned from.
        tests: what is measured afterwards, by name. "validation": the trained classes' validation pictures. Without a
            partition "all", with one "base" and "new": test pictures. For emoji also "openmoji/base" and so on: test
            emojis in styles that emoji-lite never saw. Of a long-tailed plan also "balanced", the same number
            of test pictures of each class, and "long-tail", as frequent as those learned from. Parts without pictures
            are left out.
        left_out: how many pictures each part lost because their content is learned from, which would flatter the
            method; parts that lost none are not named.
    """

    shots: int
    seed: int
    partition: int | None
    train: Part
    tests: dict[str, Part]
    imbalance: float | None = None
    left_out: dict[str, int] = field(default_factory=dict)

    @property
    def rows(self) -> Rows:
        """Every picture that the run needs, sorted int64."""
        return np.unique(np.concatenate([self.train.rows, *(part.rows for part in self.tests.values())]))


def class_groups(pictures: PictureSet, partition: int | None) -> dict[str, Rows]:
    """The classes that are learned, first, and those that are only tested.

    Args:
        pictures: the set.
        partition: None: {"all": every class}. A number: {"base": ..., "new": ...}, random halves.

    Raises:
        ValueError: `partition` is negative.
    """
    if partition is None:
        return {"all": np.arange(len(pictures.class_names))}
    base, new = base_and_new(len(pictures.class_names), partition)
    return {"base": base, "new": new}


def test_parts(pictures: PictureSet, groups: dict[str, Rows]) -> dict[str, Part]:
    """The parts that are measured, by name: see `Plan.tests`."""
    learned = next(iter(groups.values()))
    parts = {"validation": Part(learned, rows_of(pictures, "validation", learned, _task_styles(pictures)))}
    for name, classes in groups.items():
        parts[name] = Part(classes, rows_of(pictures, "test", classes, _task_styles(pictures)))
    for style in EMOJI_UNSEEN_STYLES if _has_emoji_styles(pictures) else ():
        for name, classes in groups.items():
            parts[f"{style}/{name}"] = Part(classes, rows_of(pictures, "test", classes, [style]))
    return {name: part for name, part in parts.items() if len(part.rows)}


def unlearned(pictures: PictureSet, learned: Collection[str]) -> PictureSet:
    """The set without tests on what was learned: such pictures have the split "learned", which no part has.

    Args:
        pictures: the set. Pictures that cannot be read stay, and are told of when they are looked at.
        learned: contents of the pictures that were learned from, as `PictureSet.digest` gives them, or their first
            signs, all as many.
    """
    signs = len(next(iter(learned), ""))
    split = pictures.split.astype(object)
    for row, digest in _readable(pictures, np.flatnonzero(split != "pool")):
        if digest[:signs] in learned:
            split[row] = "learned"
    return replace(pictures, split=split.astype(str))


def all_shots(pictures: PictureSet, partition: int | None) -> int:
    """The pictures per class with which a plan learns from the whole pool: those of the largest learned class."""
    learned = next(iter(class_groups(pictures, partition).values()))
    pool = rows_of(pictures, "pool", learned, _task_styles(pictures))
    return max(1, int(np.bincount(pictures.labels[pool], minlength=1).max()))


def make_plan(
    pictures: PictureSet, shots: int, seed: int, partition: int | None, imbalance: float | None = None
) -> Plan:
    """Draw the shots and lay out the tests.

    Args:
        pictures: the set.
        shots: pictures per class, at least 1.
        seed: which random draw of the shots, at least 0.
        partition: train on a random half of the classes (base) and test on both halves; None: train and test on all.
        imbalance: long-tailed training: `shots` pictures of the most frequent class, this many times fewer of the least
            frequent one (but one at least), exponentially in between (`long_tail`).

    Raises:
        ValueError: a number is out of range, a class has no picture to learn from, no test picture is left, or both
            partition and imbalance.
    """
    if partition is not None and imbalance is not None:
        raise ValueError("a long-tailed plan learns all classes: expected no partition beside an imbalance")
    groups = class_groups(pictures, partition)
    learned, styles = next(iter(groups.values())), _task_styles(pictures)
    frequency = np.ones(len(learned)) if imbalance is None else long_tail(len(learned), imbalance, seed)
    wanted = shots if imbalance is None else np.maximum(1, np.rint(shots * frequency).astype(np.int64))
    train = Part(learned, few_shot(pictures, learned, wanted, seed, styles))
    tested, tests, left_out = _tests_without(pictures, groups, train)
    if imbalance is None:
        return Plan(shots, seed, partition, train, tests, left_out=left_out)
    there = np.bincount(tests["all"].labels(pictures).numpy(), minlength=len(learned))
    if not there.all():
        name = pictures.class_names[int(there.argmin())]
        raise ValueError(f"{pictures.name}: class {name!r} has no test picture that is not learned from; bring more")
    scale = (there / frequency).min()  # the most pictures with which no class runs out
    for name, counts in (
        ("balanced", np.full(len(learned), there.min())),
        ("long-tail", np.maximum(1, (scale * frequency).astype(np.int64))),
    ):
        tests[name] = Part(learned, few_shot(tested, learned, counts, seed, styles, split="test"))
    return Plan(shots, seed, partition, train, tests, imbalance, left_out)


def published_plan(pictures: PictureSet, shots: int, seed: int, halves: bool, draw: Draw = coop_draw) -> Plan:
    """Lay out a run as the field's papers do, on a set of the benchmark.

    Args:
        pictures: the set.
        shots: pictures per class, at least 1.
        seed: of the draw; the papers have 1, 2 and 3.
        halves: learn the first half of the classes (base) and test on both (`first_half`); else learn and test on all.
        draw: which pictures are learned from, of all classes, and which are for validation: `coop_draw`, or
            `listed_draw` for published lists.

    Returns:
        The plan, whose `partition` is None. Its validation pictures are those of the draw.

    Raises:
        ValueError: see `draw`; a class has no picture to learn from, or no test picture is left.
    """
    drawn, validation = draw(pictures, shots, seed)
    n_classes = len(pictures.class_names)
    groups = dict(zip(("base", "new"), first_half(n_classes), strict=True)) if halves else class_groups(pictures, None)
    learned = next(iter(groups.values()))
    missing = np.setdiff1d(learned, pictures.labels[drawn])
    if len(missing):
        raise ValueError(f"{pictures.name}: class {pictures.class_names[missing[0]]!r} has no picture to learn from")
    split = pictures.split.astype(object)
    split[np.setdiff1d(rows_of(pictures, "validation", range(n_classes)), validation)] = "not drawn"
    chosen = replace(pictures, split=split.astype(str))
    train = Part(learned, drawn[np.isin(pictures.labels[drawn], learned)])
    _, tests, left_out = _tests_without(chosen, groups, train)
    return Plan(shots, seed, None, train, tests, left_out=left_out)


def _tests_without(
    pictures: PictureSet, groups: dict[str, Rows], train: Part
) -> tuple[PictureSet, dict[str, Part], dict[str, int]]:
    """The set without tests on what is learned, the parts that are measured, and how many pictures each part lost.

    ValueError if the tests lost all.
    """
    tested = unlearned(pictures, train.contents(pictures))
    tests = test_parts(tested, groups)
    left_out = {
        name: lost
        for name, part in test_parts(pictures, groups).items()
        if (lost := len(part.rows) - (len(tests[name].rows) if name in tests else 0))
    }
    if left_out and not tests.keys() - {"validation"}:
        raise ValueError(
            f"{pictures.name}: all {sum(left_out.values())} test pictures are learned from too; expected others to "
            "test on: bring more, or take fewer shots"
        )
    return tested, tests, left_out


def _task_styles(pictures: PictureSet) -> Sequence[str] | None:
    """Emoji's other styles are not for learning; sets without styles use every picture."""
    return EMOJI_TASK_STYLES if _has_emoji_styles(pictures) else None


def _readable(pictures: PictureSet, rows: Rows) -> Iterator[tuple[int, str]]:
    """Index and content of the pictures that can be read; `encode_pictures` names all others in one message."""
    digests = pictures.read_digests(unreadable=[], rows=rows.tolist())
    yield from ((row, digest) for row, digest in zip(rows.tolist(), digests, strict=True) if digest is not None)


def _has_emoji_styles(pictures: PictureSet) -> bool:
    return bool(np.isin(pictures.style, EMOJI_TASK_STYLES).any())
