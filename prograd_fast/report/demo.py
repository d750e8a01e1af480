"""The demonstration's table, figures and conclusions."""

from pathlib import Path

from rich.console import Console

from prograd_fast.data import EMOJI_UNSEEN_STYLES
from prograd_fast.report.figures import accuracy_figure, conflict_figure
from prograd_fast.report.summary import sentences
from prograd_fast.report.table import accuracy_table
from prograd_fast.terminal import plain
from prograd_fast.training import Record, write_json


def report_demo(results: Record, out: Path, console: Console) -> None:
    """Print what the benchmark on emoji gave, and write `results.json`, `accuracy.png` and `conflict.png`.

    Args:
        results: from `run_grid`, with runs of all four methods.
        out: existing folder; older files of these names are replaced.
        console: where table and conclusions go.
    """
    runs = results["runs"]
    conclusions = sentences(runs)
    shots, n_base = runs[0]["shots"], len(runs[0]["trained_classes"])
    n_new = len(results["data"]["class_names"]) - n_base
    n_runs = len({(run["partition"], run["seed"]) for run in runs})
    console.print(
        f"Test accuracy on emoji in %: {n_base} base, {n_new} new classes, ≤ {shots} shots, {n_runs} runs (± sd)"
    )
    unseen = [f"{style}/{half}" for style in EMOJI_UNSEEN_STYLES for half in ("base", "new")]
    console.print(accuracy_table(runs, ["base", "new", "harmonic mean", *unseen]))
    console.print(f"{' and '.join(EMOJI_UNSEEN_STYLES)} are drawing styles that the model never saw.")
    for sentence in conclusions:
        console.print(sentence)
    write_json(out / "results.json", {**results, "conclusions": conclusions})
    accuracy_figure(
        runs,
        out / "accuracy.png",
        title=f"Accuracy on {n_base} emoji classes learned from up to {shots} pictures each, and on {n_new} others\n"
        f"Bars: mean and standard deviation of {n_runs} runs; dots: the runs",
        chance=100 / n_base,
    )
    conflict_figure(
        runs,
        out / "conflict.png",
        title="Gradient of the labels' loss against that of the teacher's: ProGrad removes the conflict\n"
        f"Lines: median of {n_runs} runs; bands: the middle half of them",
    )
    console.print(plain(f"Wrote results.json, accuracy.png and conflict.png in {out}"), soft_wrap=True)
