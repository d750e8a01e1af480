"""Accuracies of runs as tables: a column for each method, or a row for each method and number of shots."""

from collections.abc import Iterable, Sequence

from prograd_fast.methods import METHODS
from prograd_fast.report.statistics import Spread, accuracies
from prograd_fast.terminal.output import Table
from prograd_fast.training import Record

TITLES = {method.name: method.title for method in METHODS}


def accuracy_table(runs: Sequence[Record], parts: Sequence[str]) -> Table:
    """One row per part, one column per method; mean ± standard deviation in percent where there are several runs.

    Args:
        runs: records with "method" and "accuracy".
        parts: which accuracies; a method without one has a dash there.
    """
    methods = list(dict.fromkeys(run["method"] for run in runs))
    rows = [[part, *(_mean_and_sd(accuracies(runs, method, part)) for method in methods)] for part in parts]
    return table_of(["test"], [TITLES[method] for method in methods], rows)


def shots_table(runs: Sequence[Record], parts: Sequence[str]) -> Table:
    """`shots_rows` as a table for the terminal."""
    return table_of(["method", "shots"], parts, shots_rows(runs, parts))


def shots_rows(runs: Sequence[Record], parts: Sequence[str]) -> list[list[str]]:
    """One row per method and number of shots: title, shots and a `Spread` for each part.

    Args:
        runs: records with "method", "shots" and "accuracy".
        parts: which accuracies; a method without one has a dash there.
    """
    return [
        [title, str(shots), *("-" if spread is None else str(spread) for spread in found)]
        for title, shots, found in spreads(runs, parts)
    ]


def spreads(runs: Sequence[Record], parts: Sequence[str]) -> list[tuple[str, int, list[Spread | None]]]:
    """For each method and number of shots the title, the shots, and the spread on each part; see `shots_rows`."""
    rows = []
    for method in METHODS:
        for shots in sorted({run["shots"] for run in runs if run["method"] == method.name}):
            here = [run for run in runs if run["shots"] == shots]
            values = [accuracies(here, method.name, part) for part in parts]
            rows.append((method.title, shots, [Spread.of(v) if v else None for v in values]))
    return rows


def _mean_and_sd(values: Sequence[float]) -> str:
    if not values:
        return "-"
    spread = Spread.of(values)
    return f"{spread.mean:.1f}" if spread.n == 1 else f"{spread.mean:.1f} ± {spread.sd:.1f}"


def table_of(names: Sequence[str], numbers: Sequence[str], rows: Iterable[Iterable[object]]) -> Table:
    """A table whose columns of numbers, which come after those of names, are aligned at the right."""
    table = Table(*names)
    for header in numbers:
        table.add_column(header, justify="right")
    for row in rows:
        table.add_row(*row)
    return table
