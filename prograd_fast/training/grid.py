"""A grid of runs, methods × shots × seeds, that goes on where it was stopped."""

import json
import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from prograd_fast.clip import LoadedClip, keep_texts
from prograd_fast.clip.teacher import KeptTexts
from prograd_fast.data import PictureSet
from prograd_fast.files.reading import check_kinds, read_json
from prograd_fast.methods import Method, takes_teacher
from prograd_fast.terminal.interrupts import Held
from prograd_fast.training.checkpoint import Checkpoints, differing
from prograd_fast.training.features import Features, encode_pictures, seen_by, taught
from prograd_fast.training.memory import PeakMemory
from prograd_fast.training.options import AS_PUBLISHED, TrainOptions
from prograd_fast.training.progress import Track
from prograd_fast.training.protocol import Plan, make_plan
from prograd_fast.training.record import (
    Record,
    plan_facts,
    run_facts,
    run_record,
    seal,
    setup_record,
    unseal,
    write_json,
)
from prograd_fast.training.run import run_method
from prograd_fast.training.train import check_teacher
from prograd_fast.training.transfer import OtherSet, TransferTest, other_sets

MOST_RUNS = 100_000  # of a grid: more would take years
_LOG = logging.getLogger("prograd_fast")


@dataclass(frozen=True)
class Grid:
    """The runs that are compared.

    Attributes:
        methods: with their settings; no two of one name.
        shots: pictures per class, each number a column of runs.
        seeds: how many draws of the shots, 0, 1, ...
        partitions: how many random halves of base and new classes, each with all seeds; 0: all classes are learned.
        imbalance: of long-tailed training, see `make_plan`; None: none.
        options: how methods with steps are trained.

    Raises:
        ValueError: nothing to compare, a method or number of shots twice, numbers out of range.
    """

    methods: Sequence[Method]
    shots: Sequence[int]
    seeds: int
    partitions: int = 0
    imbalance: float | None = None
    options: TrainOptions = AS_PUBLISHED

    def __post_init__(self) -> None:
        for name, values in (("methods", [method.name for method in self.methods]), ("shots", self.shots)):
            if not values or len(set(values)) < len(values):
                got = ", ".join(map(str, values)) or "none"
                raise ValueError(f"{name}: expected one or more, each once, got {got}")
        for name, least in (("seeds", 1), ("partitions", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: expected {least} or more, got {getattr(self, name)}")
        if self.imbalance is not None and not 1 <= self.imbalance < float("inf"):
            raise ValueError(f"imbalance: expected 1 or more and finite, got {self.imbalance}")
        runs = len(self.methods) * len(self.shots) * self.seeds * max(1, self.partitions)
        if runs > MOST_RUNS:
            raise ValueError(f"a grid of {runs} runs: expected {MOST_RUNS} at most; take fewer seeds or partitions")
        if self.partitions and self.imbalance is not None:
            raise ValueError("imbalance: a long-tailed grid learns all classes; expected no partitions beside it")

    def plans(self, pictures: PictureSet) -> tuple[dict[str, Plan], dict[int, int]]:
        """Lay out what every method learns from.

        Returns:
            Each draw of the shots by name; and for each number of shots that draws the same pictures as a smaller one,
            since no class has more, that smaller one, which stands for both.
        """
        drawn: dict[int, dict[str, Plan]] = {}
        equal: dict[int, int] = {}
        for shots in sorted(self.shots):
            plans = {
                f"{shots}shots-{draw}": make_plan(pictures, shots, seed, partition, self.imbalance)
                for draw, partition, seed in self._draws()
            }
            twin = next((k for k, others in drawn.items() if _same_pictures(others.values(), plans.values())), None)
            if twin is None:
                drawn[shots] = plans
            else:
                equal[shots] = twin
        return {name: plan for plans in drawn.values() for name, plan in plans.items()}, equal

    def _draws(self) -> Iterator[tuple[str, int | None, int]]:
        """Name, partition and seed."""
        for partition in range(self.partitions) if self.partitions else (None,):
            for seed in range(self.seeds):
                yield f"seed{seed}" if partition is None else f"partition{partition}-seed{seed}", partition, seed


def _same_pictures(plans: Iterable[Plan], others: Iterable[Plan]) -> bool:
    return all(np.array_equal(one.train.rows, other.train.rows) for one, other in zip(plans, others, strict=True))


def run_grid(
    grid: Grid,
    clip: LoadedClip,
    pictures: PictureSet,
    out: Path,
    track: Track,
    cache: Path | None = None,
    transfer: Sequence[PictureSet] = (),
    teacher: LoadedClip | None = None,
) -> Record:
    """Run what is not done yet of a grid.

    Each run has a file of its own, `out/runs/NAME.json`, written when it is finished; one that is stopped goes on from
    its checkpoint. A grid may grow: more methods, shots or seeds in the same folder run only what is new.

    Args:
        grid: what to run.
        clip: the model.
        pictures: the set to learn from.
        out: folder of the grid.
        track: opens progress bars.
        cache: folder of image features that runs share, or None.
        transfer: other sets to test on.
        teacher: another model, on the same device, in the general loss of methods with `lambda_`; None: `clip`.

    Returns:
        Model, data and versions as of `setup_record`; "teacher": name, weights and digest of the other model, and
        "methods" with it, or None; "elsewhere": the labels of the other sets; "equal_shots": see
        `Grid.plans`; and under "runs" one `run_record` for each run of the grid, with "memory": bytes held at most
        while training and testing, null where that cannot be told.

    A run that cannot be written (full disk) is named in a warning, and is among the results all the same.

    Raises:
        ValueError: a picture cannot be read, two of the other sets are the same, or a run in `out` is of another
            model, teacher, settings or pictures, those of the tests and the other sets included; a teacher for methods
            without `lambda_`, or beside augmented views.
        OSError: the folder cannot be made.
    """
    if teacher is not None:
        check_teacher(grid.methods, grid.options)
    plans, equal = grid.plans(pictures)
    others = other_sets(transfer, {pictures.name, *(name for plan in plans.values() for name in plan.tests)})
    cells = [Cell(f"{method.name}-{draw}", method, plan) for draw, plan in plans.items() for method in grid.methods]
    runs = run_cells(cells, clip, pictures, out / "runs", track, cache, others, grid.options, teacher)
    return {
        **setup_record(clip, pictures, np.unique(np.concatenate([plan.rows for plan in plans.values()]))),
        "teacher": None if teacher is None else _teaching(teacher, grid.methods),
        "elsewhere": [other.label for other in others],
        "equal_shots": {str(shots): twin for shots, twin in equal.items()},
        "runs": runs,
    }


def _teaching(teacher: LoadedClip, methods: Sequence[Method]) -> Record:
    names = [method.name for method in methods if takes_teacher(method)]
    return {"name": teacher.name, "pretrained": teacher.pretrained, "digest": teacher.digest, "methods": names}


@dataclass(frozen=True)
class Cell:
    """One run of several: its name, which is that of its file, the method, and the pictures."""

    name: str
    method: Method
    plan: Plan


def run_cells(
    cells: Sequence[Cell],
    clip: LoadedClip,
    pictures: PictureSet,
    folder: Path,
    track: Track,
    cache: Path | None,
    others: Sequence[OtherSet],
    options: TrainOptions,
    teacher: LoadedClip | None = None,
) -> list[Record]:
    """Run what is not done yet of some runs on one set, in their order; see `run_grid`.

    Args:
        cells: the runs.
        clip: the model.
        pictures: the set to learn from.
        folder: of the runs' files, `NAME.json`.
        track: opens progress bars.
        cache: folder of image features that runs share, or None.
        others: other sets to test on.
        options: how methods with steps are trained.
        teacher: as of `run_grid`.

    Returns:
        One record for each run.

    Raises:
        ValueError, OSError: as `run_grid`.
    """
    facts = _facts(cells, clip, pictures, others, options, teacher)
    records = {cell.name: _finished(folder / f"{cell.name}.json", facts[cell.name]) for cell in cells}
    missing = [cell for cell in cells if records[cell.name] is None]
    if missing:
        folder.mkdir(parents=True, exist_ok=True)
        rows = np.unique(np.concatenate([cell.plan.rows for cell in missing]))
        towers = {cell.method.before_projection: seen_by(cell.method, clip) for cell in missing}
        features = {
            before: encode_pictures(tower, pictures, rows, track("looking at the pictures", len(rows)), cache)
            for before, tower in towers.items()
        }
        tests = {
            before: [
                TransferTest.of(tower, other, track(f"looking at {other.label}", len(other.part.rows)), cache)
                for other in others
            ]
            for before, tower in towers.items()
        }
        learned = [cell.plan.train.rows for cell in missing if takes_teacher(cell.method)]
        shown: Features | None = None
        if teacher is not None and learned:
            rows = np.unique(np.concatenate(learned))
            on_picture = track("looking through the teacher", len(rows))
            shown = encode_pictures(teacher, pictures, rows, on_picture, cache)
        on_run = track("runs", len(cells))
        for _ in range(len(cells) - len(missing)):
            on_run()
        texts: KeptTexts = {}
        for cell in missing:
            teaching = None
            if teacher is not None and shown is not None and takes_teacher(cell.method):
                teaching = taught(teacher, shown, cell.plan.train.rows)
            checkpoints = _Checkpoints(folder / f"{cell.name}.safetensors", facts[cell.name])
            with keep_texts(texts), PeakMemory(clip.device) as memory:
                run = run_method(
                    cell.method,
                    clip,
                    features[cell.method.before_projection],
                    cell.plan,
                    options=options,
                    cache=cache,
                    checkpoints=checkpoints,
                    transfer=tests[cell.method.before_projection],
                    teacher=teaching,
                )
            record = {**run_record(run, pictures), "memory": memory.bytes}
            records[cell.name] = record
            try:
                with Held():
                    write_json(folder / f"{cell.name}.json", seal({"facts": facts[cell.name], **record}))
                    checkpoints.path.unlink(missing_ok=True)
            except OSError as error:
                _LOG.warning("the run %s is not kept, and is run again next time: %s", cell.name, error)
            on_run()
    return [record for record in records.values() if record is not None]


def _facts(
    cells: Sequence[Cell],
    clip: LoadedClip,
    pictures: PictureSet,
    others: Sequence[OtherSet],
    options: TrainOptions,
    teacher: LoadedClip | None,
) -> dict[str, Record]:
    """By name, what decides the numbers of each run (`run_facts`, as JSON has them)."""
    elsewhere = {other.label: other.fingerprint for other in others}
    seen = {id(cell.plan): cell.plan for cell in cells}
    plans = {key: plan_facts(pictures, plan) for key, plan in seen.items()}
    facts = {}
    for cell in cells:
        teaching = teacher if takes_teacher(cell.method) else None
        own = run_facts(cell.method, clip, plans[id(cell.plan)], options, teaching)
        facts[cell.name] = own | {"elsewhere": elsewhere}
    return dict(json.loads(json.dumps(facts)))


class _Checkpoints(Checkpoints):
    """Checkpoints of one run of many, which goes on where a checkpoint cannot be written."""

    def save(self, state: Any) -> None:
        """See `Checkpoints`; a warning instead of an error."""
        try:
            super().save(state)
        except OSError as error:
            _LOG.warning("training goes on without checkpoints: %s", error)
            self.every = math.inf


def _finished(path: Path, facts: Record) -> Record | None:
    """The record of a run, None if it is not there; ValueError if it is another run's."""
    try:
        record = unseal(read_json(path))
        check_kinds(record, {"facts": dict})
        found = record.pop("facts")
        difference = differing(found, facts)
        if difference is None:
            _check_run(record, facts)
    except FileNotFoundError:
        return None
    except (OSError, TypeError, ValueError) as error:
        _LOG.warning("%s is damaged (%s); it is run again", path, error)
        return None
    if difference:
        raise ValueError(
            f"{path} is a run of another grid: {difference}; use the same options, or choose another --out"
        )
    return record


def _check_run(record: Record, facts: Record) -> None:
    """ValueError unless all is there that tables and pictures take from a run's record."""
    names = ("method", "settings", "shots", "seed", "partition", "imbalance", "regime")
    difference = differing(record, {name: facts[name] for name in names})
    if difference:
        raise ValueError(f"beside the facts {difference}")
    check_kinds(record, {"accuracy": dict, "seconds.train": float, "memory": int | None})
    check_kinds(record["accuracy"], dict.fromkeys(record["accuracy"], float))
    if "steps" in record:
        check_kinds(record, {"steps.cosine": list})
        if not all(cosine is None or isinstance(cosine, float) for cosine in record["steps"]["cosine"]):
            raise ValueError("steps.cosine has other entries than numbers")
