"""The runs of the study as lines of numbers, `docs/study/accuracies.csv`."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tools.study.selection import Choice
from tools.study.work import Draw, Job, Runs

FACTS = ("set", "method", "lambda", "shots", "partition", "seed")
MEASURED = ("conflict", "seconds")
Run = dict[str, Any]


def jobs(choices: Sequence[Choice], draws: Sequence[Draw]) -> list[Job]:
    """Every entry with its chosen settings on every draw of its set."""
    return [Job.of(choice.entry, choice.chosen, draw) for choice in choices for draw in draws if draw.set == choice.set]


def collect(runs: Runs, done: Sequence[Job]) -> list[Run]:
    """Runs with the facts, "accuracy" as in run records (a share of 1, by part), "conflict" and "seconds"."""
    found = []
    for job in done:
        record, draw = runs.of(job), job.draw
        facts = (draw.set, job.method, job.lambda_, draw.shots, draw.partition, draw.seed)
        found.append(dict(zip(FACTS, facts, strict=True)) | {name: record[name] for name in ("accuracy", *MEASURED)})
    return found


def write(runs: Sequence[Run], path: Path) -> None:
    """A line for each run, accuracies and conflicts in %; empty where there is none."""
    parts = list(dict.fromkeys(part for run in runs for part in run["accuracy"]))
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*FACTS, *parts, *MEASURED])
        for run in runs:
            facts = ["" if run[fact] is None else run[fact] for fact in FACTS]
            accuracies = [_percent(run["accuracy"].get(part)) for part in parts]
            writer.writerow([*facts, *accuracies, _percent(run["conflict"]), f"{run['seconds']:.2f}"])


def read(path: Path) -> list[Run]:
    """The runs of `write`."""
    runs = []
    with path.open(encoding="utf-8", newline="") as file:
        for line in csv.DictReader(file):
            facts: Run = {fact: line.pop(fact) for fact in FACTS}
            facts |= {name: int(facts[name]) for name in ("shots", "partition", "seed")}
            facts["lambda"] = float(facts["lambda"]) if facts["lambda"] else None
            conflict, seconds = (line.pop(name) for name in MEASURED)
            accuracy = {part: float(percent) / 100 for part, percent in line.items() if percent}
            measured = {"conflict": float(conflict) / 100 if conflict else None, "seconds": float(seconds)}
            runs.append({**facts, "accuracy": accuracy, **measured})
    return runs


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.4f}"
