"""The demonstration's table, figures and conclusions."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from prograd_fast.data import EMOJI_UNSEEN_STYLES
from prograd_fast.report.figures import conflict_figure, path_figure
from prograd_fast.report.statistics import Spread, mean_path, new_at_base, paired
from prograd_fast.report.tables import accuracy_table
from prograd_fast.terminal.output import plain
from prograd_fast.training import Record, write_json


def report_demo(results: Record, out: Path, console: Console) -> None:
    """Print what the runs on emoji gave, and write `results.json`, `plane.png` and `conflict.png`.

    Args:
        results: from `run_grid`, with runs of all methods; and under "paths", for each run of CoOp and ProGrad, the
            "method" and "accuracy", as of `accuracy_path`.
        out: existing folder; older files of these names are replaced.
        console: where table and conclusions go.
    """
    runs, paths = results["runs"], results["paths"]
    conclusions = sentences(runs, paths)
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
    path_figure(
        runs,
        paths,
        out / "plane.png",
        title=f"{n_base} emoji classes learned from up to {shots} pictures each, and {n_new} others never shown\n"
        f"Means of {n_runs} runs; grey: equal harmonic mean",
    )
    conflict_figure(
        runs,
        out / "conflict.png",
        title="Gradient of the labels' loss against that of the teacher's: ProGrad removes the conflict\n"
        f"Left: median of {n_runs} runs and their middle half; right: mean",
    )
    console.print(plain(f"Wrote results.json, plane.png and conflict.png in {out}"), soft_wrap=True)


def sentences(runs: Sequence[Record], paths: Sequence[Record]) -> list[str]:
    """Four sentences on base and new classes, whatever the runs show.

    Args:
        runs: records of zero-shot, coop and prograd, with "partition", "seed" and "accuracy" on "base" and "new".
        paths: of coop and prograd, as in `report_demo`.
    """
    coop, prograd = (
        [paired(runs, method, "zero-shot", part) for part in ("base", "new")] for method in ("coop", "prograd")
    )
    base, new = (paired(runs, "prograd", "coop", part) for part in ("base", "new"))
    return [
        f"Against zero-shot, CoOp {_moved(coop[0])} on base classes and {_moved(coop[1])} on new ones; "
        f"ProGrad {_moved(prograd[0])} and {_moved(prograd[1])}.",
        f"ProGrad was above CoOp on new classes in {new.higher} of {new.n} runs ({_signed(new)}) "
        f"and on base classes in {base.higher} ({_signed(base)}).",
        _at_equal_base([*mean_path(paths, "prograd").values()], [*mean_path(paths, "coop").values()]),
        f"Differences are in percentage points, paired over {new.n} runs; their standard errors (se) are too small, "
        "because the runs share one test set and one pretrained model. Undecided: less than two se from zero.",
    ]


def _at_equal_base(prograd: Sequence[tuple[float, float]], coop: Sequence[tuple[float, float]]) -> str:
    """Compares two paths where both reach the same on base classes: whether stopping CoOp early would do as well."""
    idle = [name for name, path in (("CoOp", coop), ("ProGrad", prograd)) if max(path)[0] <= path[0][0]]
    if idle:
        others = [
            f" {name}'s reaches {max(path)[0]:.1f} %, with {max(path)[1]:.1f} % on new ones."
            for name, path in (("CoOp", coop), ("ProGrad", prograd))
            if name not in idle
        ]
        never = f"At no step is the path of {' or '.join(idle)} above the untouched model on base classes"
        return f"{never}, so that stopping early gains nothing.{''.join(others)}"
    base = min(max(x for x, _ in path) for path in (prograd, coop))
    kept, stopped = new_at_base(prograd, base), new_at_base(coop, base)
    more = f"{abs(kept - stopped):.1f} points {'more' if kept >= stopped else 'less'}"
    return (
        f"When both first reach {base:.1f} % on base classes, ProGrad has {more} on new ones than CoOp stopped there."
    )


def _moved(difference: Spread) -> str:
    verb = "gained" if difference.mean >= 0 else "lost"
    return f"{verb} {abs(difference.mean):.1f} ({_spread(difference)})"


def _signed(difference: Spread) -> str:
    return f"{difference.mean:+.1f} on average, {_spread(difference)}"


def _spread(difference: Spread) -> str:
    return f"se {difference.se:.1f}, undecided" if difference.undecided else f"se {difference.se:.1f}"
