"""Published numbers of the field, each with its source: `prograd_fast/training/published.csv`."""

import csv
from dataclasses import dataclass
from functools import cache
from importlib.resources import files


@dataclass(frozen=True)
class Published:
    """A published number.

    Attributes:
        method: as in `prograd-fast methods`, or another method's name.
        table: one of `TABLES`.
        dataset: a set of the benchmark, "average of 11", or "average of 10 targets" and "average of 4 targets", without
            the set that is learned.
        shots: pictures per class, 0 for a method that learns from none.
        backbone: the papers' name of the model.
        metric: "accuracy", or "base", "new" and "h", their harmonic mean.
        value: in percent.
        source: where it was read.
        note: what else a reader has to know, or "".
    """

    method: str
    table: str
    dataset: str
    shots: int
    backbone: str
    metric: str
    value: float
    source: str
    note: str


@cache
def published_numbers() -> tuple[Published, ...]:
    """All of the file, in its order."""
    text = (files("prograd_fast.training") / "published.csv").read_text(encoding="utf-8")
    return tuple(
        Published(**{**row, "shots": int(row["shots"]), "value": float(row["value"])})  # type: ignore[arg-type]
        for row in csv.DictReader(text.splitlines())
    )


def find_published(method: str, table: str, dataset: str, shots: int, metric: str) -> list[Published]:
    """All rows for a number, of every source and backbone."""
    return [
        row
        for row in published_numbers()
        if (row.method, row.table, row.dataset, row.metric) == (method, table, dataset, metric)
        and row.shots in (0, shots)
    ]
