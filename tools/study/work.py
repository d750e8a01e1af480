"""Runs in several processes. Each is kept in a file of lines when it is done, so that a study may be stopped."""

import json
import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch.nn import functional as F

from prograd_fast.clip import keep_texts
from prograd_fast.clip.before_projection import visual_projection
from prograd_fast.clip.rows import RowTable
from prograd_fast.clip.teacher import KeptTexts
from prograd_fast.data import load
from prograd_fast.methods import METHODS
from prograd_fast.training import Features, Plan, encode_pictures, load_model, make_plan, run_method
from prograd_fast.training.protocol import all_shots
from tools.study.entries import Entry

MODEL = "emoji-lite"
KINDS = {kind.name: kind for kind in METHODS}
Record = dict[str, Any]


@dataclass(frozen=True)
class Draw:
    """Pictures to learn from, and whether the test pictures are looked at."""

    set: str
    shots: int
    partition: int
    seed: int = 0
    tested: bool = True


@dataclass(frozen=True)
class Job:
    """One run: an entry's method with these settings."""

    method: str
    lambda_: float | None
    settings: tuple[tuple[str, Any], ...]
    draw: Draw

    @classmethod
    def of(cls, entry: Entry, settings: dict[str, Any], draw: Draw) -> "Job":
        """A run of an entry."""
        return cls(entry.kind.name, entry.lambda_, tuple(settings.items()), draw)

    @property
    def key(self) -> str:
        """What tells it from all other runs with one model."""
        return json.dumps(asdict(self))


class Bench:
    """A process's model and pictures.

    Args:
        store: Folder of the image features.
    """

    def __init__(self, store: Path) -> None:
        torch.set_num_threads(1)  # the models are small, and the times comparable
        self.store, self.clip = store, load_model(MODEL, device="cpu")
        self.texts: KeptTexts = {}
        self.plan_of, self.features_of = cache(self._plan), cache(self._features)

    def _plan(self, draw: Draw) -> Plan:
        """The pictures of a draw; of one that is not tested the validation pictures."""
        plan = make_plan(load(draw.set), draw.shots, draw.seed, draw.partition)
        return plan if draw.tested else replace(plan, tests={"validation": plan.tests["validation"]})

    def _features(self, name: str, before_projection: bool) -> Features:
        """Features of all pictures of a set that a plan may have: those of the plan that learns all classes.

        The tower sees them once: its features are the projection of those before it.
        """
        pictures = load(name)
        if before_projection:
            rows = make_plan(pictures, all_shots(pictures, None), 0, None).rows
            return encode_pictures(self.clip.before_projection(), pictures, rows, cache=self.store)
        before = self.features_of(name, True)
        weight, bias = visual_projection(self.clip.model)
        matrix = weight if bias is None else torch.cat([weight, bias[None]])
        return replace(before, table=RowTable.of(F.normalize(before.values @ matrix, dim=-1)))

    def run(self, job: Job) -> Record:
        """Train and test."""
        method = Entry(KINDS[job.method], job.lambda_).method(**dict(job.settings))
        features = self.features_of(job.draw.set, method.before_projection)
        plan = self.plan_of(job.draw)
        started = time.process_time()  # other work on the machine does not count
        with keep_texts(self.texts):
            run = run_method(method, self.clip, features, plan)
        conflict = None if run.history is None else run.history.conflict_rate
        return {
            "accuracy": run.accuracy,
            "conflict": None if conflict is None or np.isnan(conflict) else conflict,
            "completed": run.history is None or run.history.completed,
            "seconds": time.process_time() - started,
        }


_bench: Bench


def _begin(store: Path) -> None:
    global _bench
    _bench = Bench(store)


def _run(job: Job) -> tuple[Job, Record]:
    return job, _bench.run(job)


def _look(name: str) -> int:
    return len(_bench.features_of(name, True).rows)


class Runs:
    """All runs that are done with one model, in a file, and processes for more.

    Args:
        folder: Where the file and the image features are.
        processes: How many runs go on at once; of one alone, in this process.
    """

    def __init__(self, folder: Path, processes: int = 2) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        digest = load_model(MODEL, device="cpu").digest
        self.path, self.done = folder / f"runs-{digest[:12]}.jsonl", dict[str, Record]()
        for line in self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else ():
            record = json.loads(line)
            self.done[record.pop("job")] = record
        self.pool = None
        if processes > 1:
            self.pool = multiprocessing.get_context("spawn").Pool(processes, _begin, (folder / "features",))
        else:
            _begin(folder / "features")

    def __enter__(self) -> "Runs":
        return self

    def __exit__(self, *error: object) -> None:
        if self.pool is not None:
            self.pool.terminate()

    def look(self, sets: Sequence[str]) -> None:
        """Compute the image features of these sets, once for all processes."""
        list(self._each(_look, sets, "pictures"))

    def of(self, job: Job) -> Record:
        """The record of a run that is done."""
        return self.done[job.key]

    def do(self, jobs: Sequence[Job], what: str) -> None:
        """Run those that are not done yet."""
        missing = [job for job in dict.fromkeys(jobs) if job.key not in self.done]
        if not missing:
            return
        with self.path.open("a", encoding="utf-8") as file:
            for job, record in self._each(_run, missing, what):
                self.done[job.key] = record
                file.write(json.dumps({"job": job.key, **record}) + "\n")
                file.flush()

    def _each(self, do: Callable[[Any], Any], items: Sequence[Any], what: str) -> Iterator[Any]:
        """The results as they come, with a bar."""
        found = map(do, items) if self.pool is None else self.pool.imap_unordered(do, items)
        return iter(track(found, what, total=len(items), console=Console(stderr=True)))
