"""Tests on other sets, each among its own classes, under names that nothing else has."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from prograd_fast.clip import LoadedClip
from prograd_fast.data import PictureSet
from prograd_fast.training.features import Features, encode_pictures
from prograd_fast.training.protocol import Part, class_groups, test_parts, unlearned

RESERVED = ("validation", "all", "base", "new", "harmonic mean", "balanced", "long-tail")  # tests of a run's own set


@dataclass(frozen=True)
class OtherSet:
    """A set to test on that is not learned from.

    Attributes:
        label: what the test is called.
        pictures: the set.
        part: its test pictures, among all its classes.
        fingerprint: of these pictures.
    """

    label: str
    pictures: PictureSet
    part: Part
    fingerprint: str


@dataclass(frozen=True)
class TransferTest:
    """A test on another set, among its own classes: cross-dataset transfer, or another domain.

    Attributes:
        label: what the test is called; no other test of the run is called so.
        features: image features of at least `part.rows`.
        part: test pictures and all classes of their set.
    """

    label: str
    features: Features
    part: Part

    @classmethod
    def of(
        cls, clip: LoadedClip, other: OtherSet, on_picture: Callable[[], None], cache: Path | None = None
    ) -> "TransferTest":
        """Look at the pictures; errors as `encode_pictures`."""
        return cls(other.label, encode_pictures(clip, other.pictures, other.part.rows, on_picture, cache), other.part)

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes that it is tested among."""
        return tuple(self.part.class_names(self.features.pictures))

    def without(self, learned: Collection[str]) -> Part:
        """The part without the pictures whose content is among these; see `unlearned`."""
        rows = self.part.rows
        return replace(self.part, rows=rows[unlearned(self.features.pictures, learned).split[rows] != "learned"])


def other_sets(sets: Sequence[PictureSet], taken: Collection[str] = ()) -> list[OtherSet]:
    """Give each set a label of its own: its name, or as much of its path as tells it from all else.

    Args:
        sets: the sets.
        taken: names of other tests, beside `RESERVED`.

    Raises:
        ValueError: two of them are the same pictures, or one has no test picture.
    """
    labels, depths = [other.name for other in sets], [1] * len(sets)
    prints: list[str] = []
    parts = []
    for other in sets:
        part = test_parts(other, class_groups(other, None)).get("all")
        if part is None:
            raise ValueError(f"{other.folder or other.name} has no test picture; expected some to test on")
        fingerprint = other.fingerprint(part.rows)
        if fingerprint in prints:
            one = sets[prints.index(fingerprint)]
            raise ValueError(
                f"{one.folder or one.name} and {other.folder or other.name} are the same test pictures and classes; "
                "expected other sets to test on, each once"
            )
        prints.append(fingerprint)
        parts.append(part)
    while clashing := [i for i, label in enumerate(labels) if label in (*RESERVED, *taken) or labels.count(label) > 1]:
        for i in clashing:
            depths[i] += 1
            labels[i] = _label(sets[i], depths[i], prints[i])
    return [OtherSet(*one) for one in zip(labels, sets, parts, prints, strict=True)]


def _label(pictures: PictureSet, depth: int, fingerprint: str) -> str:
    """The last so many parts of its path; beyond the path, its name and the first signs of its fingerprint."""
    path = () if pictures.folder is None else pictures.folder.parts
    return "/".join(path[-depth:]) if depth <= len(path) else f"{pictures.name} {fingerprint[:8]}"
