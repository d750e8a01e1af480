"""Accuracies as a table for the terminal."""

from collections.abc import Sequence

from prograd_fast.methods import METHODS
from prograd_fast.report.summary import accuracies, mean_and_sd
from prograd_fast.terminal import Table
from prograd_fast.training import Record

TITLES = {method.name: method.title for method in METHODS}


def accuracy_table(runs: Sequence[Record], parts: Sequence[str]) -> Table:
    """One row per part, one column per method; mean ± standard deviation in percent where there are several runs.

    Args:
        runs: records with "method" and "accuracy".
        parts: which accuracies; a method without one has a dash there.
    """
    methods = list(dict.fromkeys(run["method"] for run in runs))
    table = Table("test")
    for method in methods:
        table.add_column(TITLES[method], justify="right")
    for part in parts:
        table.add_row(part, *(_cell(accuracies(runs, method, part)) for method in methods))
    return table


def _cell(values: Sequence[float]) -> str:
    if not values:
        return "-"
    mean, sd = mean_and_sd(values)
    return f"{mean:.1f} ± {sd:.1f}" if len(values) > 1 else f"{mean:.1f}"
