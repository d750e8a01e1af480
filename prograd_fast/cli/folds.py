"""`train --folds`: a small folder is tested whole, one fold after the other."""

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from prograd_fast.cli.one_run import OneRun
from prograd_fast.cli.run_folder import check_what_is_there
from prograd_fast.terminal.output import console, say

if TYPE_CHECKING:
    from prograd_fast.data import PictureSet


def check_folds(out: Path, n: int, resume: bool, force: bool) -> None:
    """ValueError where `out` holds something else than these folds, or holds them and nobody asked to go on."""
    from prograd_fast.training import CHECKPOINT, RUN_FILES

    if any((out / name).exists() for name in (*RUN_FILES, CHECKPOINT)):
        raise ValueError(f"{out} holds a run without folds; choose another --out")
    names = [f"fold{k}" for k in range(n)]
    others = [path for path in sorted(out.glob("fold*")) if re.fullmatch(r"fold\d+", path.name)]
    if odd := [path for path in others if path.name not in names]:
        raise ValueError(f"{odd[0]} is of an earlier run with more than {n} folds; choose another --out")
    for name in names:
        check_what_is_there(out / name, resume, force)


def train_folds(run: OneRun, pictures: "PictureSet", n: int, out: Path, log: Path | None) -> None:
    """Train and test n times, so that each picture is a test picture once, and print mean and standard deviation.

    Fold k is a run of its own in `out/foldK`; `out/summary.json` sums them up.
    """
    from prograd_fast.data import with_fold
    from prograd_fast.report import report_folds

    run = replace(run, hint=f"; --resume goes on with the folds in {out}")
    (out / "summary.json").unlink(missing_ok=True)
    records = []
    for k in range(n):
        say(f"Fold {k + 1} of {n}:")
        name = f"fold{k}"
        records.append(run.train(with_fold(pictures, (k, n)), out / name, None if log is None else log / name))
    report_folds(records, out, console)
