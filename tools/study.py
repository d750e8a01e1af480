"""All methods on emoji: settings chosen on validation pictures, the same budget for each, then the grid of runs.

    python -m tools.study            works in build/study/, then writes docs/study/

Every method may try six values of its one setting that matters most, the step size (the linear probe: its penalty). A
value's worth is the mean accuracy on the validation pictures of the base classes, over two numbers of shots and three
partitions. New classes, unseen styles and test pictures take no part. A study that was stopped goes on where it was.

`docs/study/accuracies.csv` has a line for each run; the tables of `docs/study/` are made from it.
"""

import csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track

from prograd_fast.data import load
from prograd_fast.files.writing import replacing
from prograd_fast.methods import METHODS, GradientMethod, LinearProbe, Method
from prograd_fast.report.statistics import accuracies, paired
from prograd_fast.training import encode_pictures, load_model, make_plan, run_method
from prograd_fast.training.features import seen_by

REPOSITORY = Path(__file__).parents[1]
WORK, DOCS = REPOSITORY / "build" / "study", REPOSITORY / "docs" / "study"
PICTURES = ("shots.png", "plane.png", "conflict.png", "cost.png")
SHOTS, SEEDS, PARTITIONS = (1, 4, 8, 16), 5, 3
VALIDATION_SHOTS, VALIDATION_SEED = (4, 16), SEEDS  # a draw that the study does not use
# around each method's default, in steps of three
STEPS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0)


def candidates(kind: type[Method]) -> list[Method]:
    """Six settings of a method, or one of a method that has none to choose."""
    method = kind()
    if isinstance(method, LinearProbe):
        return [replace(method, C=step * method.C) for step in STEPS]
    if isinstance(method, GradientMethod):
        return [replace(method, lr=float(f"{step * method.lr:.3g}")) for step in STEPS]
    return [method]


def value(method: Method) -> dict[str, float]:
    """The setting that was chosen."""
    if isinstance(method, LinearProbe):
        return {"C": method.C}
    return {"lr": method.lr} if isinstance(method, GradientMethod) else {}


def select() -> dict[str, list[tuple[Method, float]]]:
    """Validation accuracy in % of every candidate, by method."""
    pictures, clip = load("emoji"), load_model("emoji-lite", device="cpu")
    plans = [
        make_plan(pictures, shots, VALIDATION_SEED, partition)
        for shots in VALIDATION_SHOTS
        for partition in range(PARTITIONS)
    ]
    plans = [replace(plan, tests={"validation": plan.tests["validation"]}) for plan in plans]
    rows = np.unique(np.concatenate([plan.rows for plan in plans]))
    methods = [method for kind in METHODS for method in candidates(kind)]
    towers = {method.before_projection: seen_by(method, clip) for method in methods}
    features = {before: encode_pictures(tower, pictures, rows) for before, tower in towers.items()}
    found: dict[str, list[tuple[Method, float]]] = {}
    for method in track(methods, "settings", console=Console(stderr=True)):
        seen = features[method.before_projection]
        accuracies = [run_method(method, clip, seen, plan).accuracy["validation"] for plan in plans]
        found.setdefault(method.name, []).append((method, 100 * fmean(accuracies)))
    return found


def table(found: dict[str, list[tuple[Method, float]]]) -> str:
    """The selection in Markdown, the chosen values in bold."""
    lines = ["| method | setting | " + " | ".join(["value: accuracy in %"] * len(STEPS)) + " |"]
    lines.append("|" + "---|" * (2 + len(STEPS)))
    for kind in METHODS:
        tried = found[kind.name]
        best = max(accuracy for _, accuracy in tried)
        cells = []
        for method, accuracy in tried:
            for setting in value(method).values():
                cell = f"{setting:g}: {accuracy:.1f}"
                cells.append(f"**{cell}**" if accuracy == best else cell)
        name = next(iter(value(tried[0][0])), "")
        lines.append("| " + " | ".join([kind.title, name, *cells, *[""] * (len(STEPS) - len(cells))]) + " |")
    return "\n".join(lines) + "\n"


def write_accuracies(runs: Sequence[dict[str, Any]], path: Path) -> None:
    """A line for each run: method, shots, partition, seed and every accuracy in %; empty where there is none."""
    facts = ("method", "shots", "partition", "seed")
    parts = list(dict.fromkeys(part for run in runs for part in run["accuracy"]))
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*facts, *parts])
        for run in runs:
            percent = {part: f"{100 * accuracy:.4f}" for part, accuracy in run["accuracy"].items()}
            writer.writerow([*(run[fact] for fact in facts), *(percent.get(part, "") for part in parts)])


def read_accuracies(path: Path) -> list[dict[str, Any]]:
    """The runs of `write_accuracies`, with "accuracy" as in run records: a share of 1, by part."""
    with path.open(encoding="utf-8", newline="") as file:
        return [
            {
                "method": line.pop("method"),
                **{fact: int(line.pop(fact)) for fact in ("shots", "partition", "seed")},
                "accuracy": {part: float(percent) / 100 for part, percent in line.items() if percent},
            }
            for line in csv.DictReader(file)
        ]


def differences(runs: Sequence[dict[str, Any]]) -> str:
    """Each method minus zero-shot at the most shots, paired by partition and draw, as a table: mean ± 95 % interval."""
    parts = ("base", "new", "harmonic mean", "openmoji/base", "openmoji/new")
    runs = [run for run in runs if run["shots"] == max(SHOTS)]
    lines = [f"| against zero-shot, {max(SHOTS)} shots | {' | '.join(parts)} |", "|" + " --- |" * (1 + len(parts))]
    there = {run["method"] for run in runs}
    for kind in [kind for kind in METHODS[1:] if kind.name in there]:
        cells = []
        for part in parts:
            spread = paired(runs, kind.name, "zero-shot", part) if accuracies(runs, kind.name, part) else None
            cells.append("-" if spread is None else f"{spread.mean:+.1f} ± {spread.half_width:.1f}".replace("-", "−"))
        lines.append(f"| {kind.title} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """The study."""
    torch.set_num_threads(1)  # the models are small, and the times comparable
    WORK.mkdir(parents=True, exist_ok=True)
    settings = WORK / "settings.json"
    if not settings.exists():
        found = select()
        chosen = {name: value(max(tried, key=lambda one: one[1])[0]) for name, tried in found.items()}
        (WORK / "selection.md").write_text(table(found), encoding="utf-8")
        with replacing(settings) as path:
            chosen = {name: setting for name, setting in chosen.items() if setting}
            path.write_text(json.dumps(chosen, indent=1) + "\n", encoding="utf-8")
    shots = ",".join(map(str, SHOTS))
    options = ["--shots", shots, "--seeds", str(SEEDS), "--partitions", str(PARTITIONS), "--settings", str(settings)]
    command = [sys.executable, "-m", "prograd_fast", "compare", "--data", "emoji", "--methods", "all", *options]
    subprocess.run([*command, "--out", str(WORK)], check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    for name in ("settings.json", "selection.md", "tables.md", *PICTURES):
        shutil.copyfile(WORK / name, DOCS / name)
    results = json.loads((WORK / "results.json").read_text(encoding="utf-8"))
    write_accuracies(results["runs"], DOCS / "accuracies.csv")
    print(differences(read_accuracies(DOCS / "accuracies.csv")), end="")  # the table of docs/study/README.md


if __name__ == "__main__":
    main()
