"""A reproduction before it is done: pictures, classes, words, settings."""

import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path

import numpy as np

from prograd_fast.data import BENCHMARKS, PictureSet, load_benchmark
from prograd_fast.data.published_draws import listed_draw
from prograd_fast.data.splits import Rows, first_half
from prograd_fast.files.writing import replacing
from prograd_fast.methods import GradientMethod, Method, PromptTuning
from prograd_fast.reproduce.protocol import Reproduction
from prograd_fast.reproduce.settings import Chosen, published_settings

HEADER = (
    "set", "shots", "seeds", "learned classes", "all classes", "pictures", "validation pictures", "test pictures",
    "words", "preset", "published with", "epochs", "batch", "learning rate", "warm-up", "momentum", "weight decay",
    "pictures seen as",
)  # fmt: skip
SHORT = (
    "set", "shots", "learned classes", "pictures", "words", "preset", "epochs", "batch", "learning rate",
)  # fmt: skip


@dataclass(frozen=True)
class Planned:
    """The runs of one set and number of shots, one for each seed.

    Attributes:
        dataset: the set that is learned.
        class_names: of all its classes.
        n_learned: how many of them are learned, the first.
        shots: pictures per class.
        chosen: the method's settings.
        drawn: seed -> pictures to learn from, and pictures for validation: (seed, part, file, class).
        n_test: test pictures of all classes, of the set itself.
        elsewhere: sets of the table that are not learned -> their classes.
    """

    dataset: str
    class_names: tuple[str, ...]
    n_learned: int
    shots: int
    chosen: Chosen
    drawn: dict[int, list[tuple[str, str, str]]]
    n_test: int
    elsewhere: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def classes(self) -> dict[str, tuple[str, ...]]:
        """The classes of its sets, the learned one first."""
        return {self.dataset: self.class_names, **self.elsewhere}

    @property
    def untested(self) -> list[str]:
        """The sets of `elsewhere` whose classes the method cannot name."""
        if self.chosen.method.names_new_classes:
            return []
        return [name for name, classes in self.elsewhere.items() if classes != self.class_names]

    def cells(self, reproduction: Reproduction) -> list[str]:
        """A row of the plan, in the order of `HEADER`."""
        method = self.chosen.method
        parts = [sorted({sum(part == name for part, *_ in one) for one in self.drawn.values()}) for name in _PARTS]
        templates = getattr(method, "templates", ()) or method.teacher_templates or ()
        steps = ["-"] * 6
        if isinstance(method, GradientMethod):
            steps = [
                "+".join(map(str, method.stages())),
                str(method.batch_size or "all"),
                f"{method.lr:g}",
                f"{method.warmup_epochs} at {method.warmup_lr:g}" if method.warmup_epochs else "0",
                f"{method.momentum:g}",
                f"{method.weight_decay:g}",
            ]
        starts = ""
        if isinstance(method, PromptTuning):
            tokens = f"{method.n_ctx} tokens, " if method.n_ctx else ""
            starts = f"{tokens}from {method.ctx_init!r}" if method.ctx_init else f"{tokens}random"
        said = templates[0] if len(templates) == 1 else f"{len(templates)} templates"
        return [
            self.dataset,
            str(self.shots),
            ", ".join(map(str, self.drawn)),
            str(self.n_learned),
            str(len(self.class_names)),
            *(" or ".join(map(str, counts)) for counts in parts),
            str(self.n_test),
            "; ".join(filter(None, [starts, f"fixed prompts: {said}" if templates else ""])) or "-",
            self.chosen.preset or "the method's defaults",
            self.chosen.backbone or "-",
            *steps,
            seen_as(reproduction, type(method)),
        ]


_PARTS = ("train", "validation")


def seen_as(reproduction: Reproduction, kind: type[Method]) -> str:
    """How a method sees the pictures that it learns from."""
    views, seen = reproduction.options.views, []
    if views is None:
        return "they are"
    if kind.crops is not None:
        how = "averaged" if kind.crops.averaged else "each a picture"
        seen.append(f"{views or kind.crops.number} random crops and flips, {how}")
    if issubclass(kind, GradientMethod):
        seen.append(
            f"{views} stored random crops and flips in turn" if views else "a new random crop and flip in each epoch"
        )
    return "; then ".join(seen) or "they are"


def planned_runs(reproduction: Reproduction, backbone: str) -> Iterator[Planned]:
    """The plan, set by set. Only lists of files are read, no picture.

    Args:
        reproduction: what is run.
        backbone: of the model that it is run on, see `backbone_of`.

    Raises:
        ValueError: files of a set are missing or damaged, or a published list is.
    """
    reproduction.check_sets()
    others = {name: load_benchmark(name, reproduction.root).class_names for name in reproduction.tested_elsewhere}
    for name in reproduction.learned:
        pictures = load_benchmark(name, reproduction.root)
        if "test" not in pictures.split:
            raise ValueError(f"{name}: it has no picture for the test; `prograd-fast data check {name}` counts them")
        n = len(pictures.class_names)
        n_learned = len(first_half(n)[0]) if reproduction.table == "base-to-new" else n
        for shots in reproduction.all_shots:
            yield Planned(
                name,
                pictures.class_names,
                n_learned,
                shots,
                published_settings(reproduction.kind, reproduction.table, name, shots, backbone),
                {seed: _drawn(reproduction, pictures, n_learned, shots, seed) for seed in reproduction.seeds},
                int((pictures.split == "test").sum()),
                others,
            )


def _drawn(
    reproduction: Reproduction, pictures: PictureSet, n_learned: int, shots: int, seed: int
) -> list[tuple[str, str, str]]:
    """(part, file below the root, class) of each picture that a run learns from or chooses by."""
    found: list[tuple[str, str, str]] = []
    for part, rows in zip(_PARTS, reproduction.draw(pictures, shots, seed), strict=True):
        own: Rows = rows[np.isin(pictures.labels[rows], np.arange(n_learned))]
        for row in own.tolist():
            file = Path(pictures.source[row]).relative_to(reproduction.root)
            found.append((part, file.as_posix(), pictures.class_names[pictures.labels[row]]))
    return found


def plan_notes(reproduction: Reproduction, plan: list[Planned], model: str) -> list[str]:
    """Sentences that belong to a plan: the draws, and where settings or sets are others than the published ones."""
    lacking = list(dict.fromkeys(name for one in plan for name in one.untested))
    others = [name for name in reproduction.tested_elsewhere if name not in lacking]
    tested = f", tested on {', '.join(others)} too" if others else ""
    listed = "the lists in split_fewshot/" if reproduction.draw is listed_draw else "CoOp's draws"
    said = [
        f"{reproduction.kind.title}, table {reproduction.table}{tested}; {listed}; seeds "
        f"{', '.join(map(str, reproduction.seeds))}; model {model}."
    ]
    if reproduction.table == "base-to-new":
        said.append("Base classes are the first half of the labels, rounded up; the others are new.")
        if not reproduction.kind.names_new_classes:
            lacking = ["new classes"]
    if lacking:
        title = reproduction.kind.title
        said.append(f"Not tested on {', '.join(lacking)}: {title} knows no classes but those that it learned.")
    for name, classes in {key: value for one in plan for key, value in one.classes.items()}.items():
        if len(classes) != BENCHMARKS[name].classes:
            said.append(f"{name} has {len(classes)} classes here, and {BENCHMARKS[name].classes} as published.")
    defaults = [one for one in plan if not one.chosen.preset]
    if defaults:
        said.append(
            f"No preset for {_named(defaults)}: the method's defaults stand, with the set's words if it has such."
        )
    other = [one for one in plan if one.chosen.preset and not one.chosen.for_table]
    if other:
        said.append(
            f"No published settings for this table; those of {_listed(one.chosen.preset for one in other)} stand in."
        )
    return said


def _named(plan: list[Planned]) -> str:
    return _listed(one.dataset for one in plan)


def _listed(names: Iterator[str]) -> str:
    return ", ".join(dict.fromkeys(names))


def write_plan(reproduction: Reproduction, plan: list[Planned], out: Path) -> None:
    """Write `STEM-plan.csv`, a row for each set and number of shots, and `STEM-pictures.csv`, one for each picture."""
    write_csv(out / f"{reproduction.stem}-plan.csv", [HEADER, *(one.cells(reproduction) for one in plan)])
    pictures = [
        (one.dataset, str(one.shots), str(seed), *picture)
        for one in plan
        for seed, drawn in one.drawn.items()
        for picture in drawn
    ]
    write_csv(
        out / f"{reproduction.stem}-pictures.csv", [("set", "shots", "seed", "part", "picture", "class"), *pictures]
    )


def write_csv(path: Path, rows: list[tuple[str, ...] | list[str]]) -> None:
    """Write a table, all of it or nothing."""
    text = StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    with replacing(path) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8")
