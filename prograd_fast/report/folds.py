"""The sum of a k-fold cross-validation."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from prograd_fast.methods import ZeroShot
from prograd_fast.report.statistics import Spread
from prograd_fast.report.tables import accuracy_table
from prograd_fast.terminal.output import plain
from prograd_fast.training import Record, write_json


def report_folds(records: Sequence[Record], out: Path, console: Console) -> None:
    """Print the accuracies beside those of zero-shot, mean and standard deviation over the folds; write `summary.json`.

    Args:
        records: of one run per fold, in their order.
        out: existing folder; an older file of this name is replaced.
        console: where the table goes.
    """
    untouched = [{"method": ZeroShot.name, "accuracy": record["zero_shot_accuracy"]} for record in records]
    rows = [*untouched, *records] if records[0]["method"] != ZeroShot.name else records
    parts = list(dict.fromkeys(part for record in records for part in record["accuracy"]))
    console.print(plain(f"Accuracy in %, mean ± standard deviation over {len(records)} folds:"), soft_wrap=True)
    console.print(accuracy_table(rows, parts))
    names = ("model", "data", "method", "settings", "seed", "partition", "regime")
    summary = {
        **{name: records[0][name] for name in names},
        "folds": [
            {name: record[name] for name in ("shots", "pictures", "left_out", "accuracy", "zero_shot_accuracy")}
            for record in records
        ],
        "accuracy": _spreads([record["accuracy"] for record in records]),
        "zero_shot_accuracy": _spreads([record["zero_shot_accuracy"] for record in records]),
    }
    write_json(out / "summary.json", summary)
    broken = [f"fold{k}" for k, record in enumerate(records) if record.get("completed") is False]
    if broken:
        console.print(plain(f"The loss was no longer finite in {', '.join(broken)}; try a lower --lr."), soft_wrap=True)
    console.print(
        plain(f"Wrote {out}: a run in each of fold0 to fold{len(records) - 1}, and summary.json"), soft_wrap=True
    )


def _spreads(folds: Sequence[dict[str, float]]) -> dict[str, Any]:
    """Mean and sample standard deviation of each part, in [0, 1], over the folds that have it."""
    parts = dict.fromkeys(part for fold in folds for part in fold)
    spreads = {part: Spread.of([fold[part] for fold in folds if part in fold]) for part in parts}
    return {
        part: {"mean": spread.mean, "sd": None if math.isnan(spread.sd) else spread.sd, "folds": spread.n}
        for part, spread in spreads.items()
    }
