"""The study: `python -m tools.study`."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from prograd_fast.methods import METHODS, Method
from tools import REPOSITORY
from tools.study import page, results, selection, tables
from tools.study.entries import Entry, entries
from tools.study.work import Draw, Job, Runs

SETS = ("emoji", "clipart")
PARTITIONS = 15  # each with one draw of the pictures
FEWER_SHOTS = (1, 4, 8)  # on the first set
BY_SHOTS = ("zero-shot", "linear-probe", "coop", "prograd", "kgcoop", "tcp", "clip-adapter", "lp++", "gda", "prolip")


def study(
    work: Path, docs: Path, methods: Sequence[type[Method]] = METHODS, partitions: int = PARTITIONS, processes: int = 2
) -> None:
    """Choose settings, run, and write the tables, the numbers and the pictures.

    Args:
        work: Folder of the runs; those that are there are not run again.
        docs: Folder of what is written.
        methods: Of the list of methods; zero-shot is among them.
        partitions: How many halves of each set's classes.
        processes: How many runs go on at once.
    """
    choices, same = list[selection.Choice](), list[Job]()
    draws = [Draw(name, tables.SHOTS, partition) for name in SETS for partition in range(partitions)]
    fewer = [Draw(SETS[0], shots, partition) for shots in FEWER_SHOTS for partition in range(partitions)]
    with Runs(work, processes) as runs:
        runs.look(SETS)
        for kind in methods:  # method by method, so that a study that is stopped has whole methods
            compared = entries(kind)
            runs.do([job for name in SETS for job in selection.jobs(name, compared)], f"settings of {kind.title}")
            new = [choice for name in SETS for choice in selection.choose(runs, name, compared)]
            runs.do(results.jobs(new, draws), f"{kind.title}")
            same += results.jobs(at_the_same_settings(new), draws)
            runs.do(same, f"{kind.title} at the settings of λ = 0")
            choices += new
        jobs = results.jobs(choices, draws)
        jobs += results.jobs([choice for choice in choices if _is_followed(choice.entry)], fewer)
        runs.do(jobs, "fewer shots")
        docs.mkdir(parents=True, exist_ok=True)
        results.write(results.collect(runs, jobs), docs / "accuracies.csv")
        results.write(results.collect(runs, same), docs / "same-settings.csv")
    (docs / "selection.md").write_text(selection.page(choices), encoding="utf-8")
    page.write(docs)


def at_the_same_settings(choices: Sequence[selection.Choice]) -> list[selection.Choice]:
    """All of the projection with the settings that were chosen without it, on each set; none of a method without λ."""
    with_all = {choice.entry.kind for choice in choices if choice.entry.lambda_ == 1}
    without = [choice for choice in choices if choice.entry.lambda_ == 0 and choice.entry.kind in with_all]
    return [replace(choice, entry=Entry(choice.entry.kind, 1.0)) for choice in without]


def _is_followed(entry: Entry) -> bool:
    """Whether an entry is run with fewer shots too."""
    if entry.kind.name == "coop" and entry.lambda_ == 1:
        return "prograd" in BY_SHOTS
    return entry.kind.name in BY_SHOTS and entry.lambda_ in (None, 0.0)


if __name__ == "__main__":
    study(REPOSITORY / "build" / "study", REPOSITORY / "docs" / "study")
