"""What the study's runs say about methods, set by set: a table, and sentences that hold whatever it shows."""

from collections.abc import Mapping, Sequence
from statistics import fmean, median
from typing import Any

from prograd_fast.report.statistics import Spread, accuracies, paired
from prograd_fast.report.tables import TITLES
from tools.blocks import table

PARTS = ("base", "new", "harmonic mean")
FACTS = ("set", "method", "lambda", "shots", "partition", "seed")  # of a run
NO_ACCURACIES = (*FACTS, "conflict", "seconds")

Run = dict[str, Any]


def measured(rows: Sequence[Mapping[str, str]]) -> str:
    """A table and sentences for each set.

    Args:
        rows: Lines of `docs/study/accuracies.csv`. "set" is emoji where it is not told; "lambda" is empty for a method
            without one.
    """
    runs = [_run(row) for row in rows]
    found = []
    for name in dict.fromkeys(run["set"] for run in runs):
        here = [run for run in runs if run["set"] == name]
        few, many = min(run["shots"] for run in here), max(run["shots"] for run in here)
        own = as_published(here)
        shots = {n: [run for run in own if run["shots"] == n] for n in (few, many)}
        text = f"{_table(name, shots)}\n{_against_zero_shot(shots)}"
        found.append(text + _with_projection([run for run in here if run["shots"] == many]))
    return "\n".join(found)


def spread_of_runs(rows: Sequence[Mapping[str, str]]) -> str:
    """How far runs of one method are apart that differ in partition or draw alone, on emoji: a table."""
    runs = as_published([run for run in map(_run, rows) if run["set"] == "emoji"])
    lines = []
    for method in ("coop", "prograd", "kgcoop"):
        for shots in sorted({run["shots"] for run in runs if run["method"] == method}):
            own = [run for run in runs if run["shots"] == shots]
            cells = []
            for part in ("base", "new"):
                values = accuracies(own, method, part)
                cells += [f"{fmean(values):.1f} ± {Spread.of(values).sd:.1f}", f"{max(values) - min(values):.1f}"]
            lines.append([TITLES[method], str(shots), *cells])
    return table(["method", "pictures per class", "base", "largest gap", "new", "largest gap"], lines)


def _run(row: Mapping[str, str]) -> Run:
    return {
        "set": row.get("set") or "emoji",
        "method": row["method"],
        "lambda": float(row["lambda"]) if row.get("lambda") else None,
        **{name: int(row[name]) for name in ("shots", "partition", "seed")},
        "accuracy": {part: float(x) / 100 for part, x in row.items() if part not in NO_ACCURACIES and x},
        "seconds": float(row.get("seconds") or "nan"),
    }


def as_published(runs: Sequence[Run]) -> list[Run]:
    """The runs of the methods as they are: without projection, but for ProGrad, which is CoOp with all of it."""
    named = [{**run, "method": "prograd"} if (run["method"], run["lambda"]) == ("coop", 1.0) else run for run in runs]
    return [run for run in named if run["method"] == "prograd" or run["lambda"] in (None, 0.0)]


def _table(name: str, shots: Mapping[int, Sequence[Run]]) -> str:
    """The methods by base accuracy with the most pictures; their base accuracy with the fewest; seconds of training."""
    (few, first), *_, (many, runs) = *shots.items(), *shots.items()
    methods = sorted({run["method"] for run in runs}, key=lambda method: -fmean(accuracies(runs, method, "base")))
    header, lines = [f"{name}, up to {many} pictures per class", *PARTS], []
    header += [f"base, {_count(few)}"] if few < many else []
    timed = any(run["seconds"] == run["seconds"] for run in runs)
    header += ["seconds"] if timed else []
    for method in methods:
        cells = [_mean(accuracies(runs, method, part)) for part in PARTS]
        cells += [_mean(accuracies(first, method, "base"))] if few < many else []
        cells += [f"{median(run['seconds'] for run in runs if run['method'] == method):.2g}"] if timed else []
        lines.append([TITLES[method], *cells])
    return table(header, lines)


def _against_zero_shot(shots: Mapping[int, Sequence[Run]]) -> str:
    (few, first), *_, (many, runs) = *shots.items(), *shots.items()

    def listed(of: Sequence[Run], part: str, sign: int) -> str:
        methods = [method for method in dict.fromkeys(run["method"] for run in of) if method != "zero-shot"]
        there = [method for method in methods if accuracies(of, method, part)]
        return _surely({TITLES[method]: paired(of, method, "zero-shot", part) for method in there}, sign)

    lines = [
        f"- Above zero-shot on base classes with {_count(many)}: {listed(runs, 'base', 1)}.",
        f"- Below zero-shot on new classes with {_count(many)}: {listed(runs, 'new', -1)}.",
        f"- Above zero-shot in the harmonic mean with {_count(many)}: {listed(runs, 'harmonic mean', 1)}.",
    ]
    if few < many:
        lines.append(f"- Above zero-shot on base classes with {_count(few)}: {listed(first, 'base', 1)}.")
    return "".join(f"{line}\n" for line in lines)


def _with_projection(runs: Sequence[Run]) -> str:
    """λ = 1 against λ = 0 in the methods that were run with both; nothing where there are none."""
    both = [
        method
        for method in dict.fromkeys(run["method"] for run in runs)
        if {0.0, 1.0} <= {run["lambda"] for run in runs if run["method"] == method}
    ]
    if not both:
        return ""
    lines = []
    for part in PARTS:
        spreads = {}
        for method in both:
            own = [{**run, "method": str(run["lambda"])} for run in runs if run["method"] == method]
            if accuracies(own, "1.0", part):
                spreads[TITLES[method]] = paired(own, "1.0", "0.0", part)
        higher, lower = _surely(spreads, 1), _surely(spreads, -1)
        lines.append(f"- Projection (λ = 1) against none, {part}: higher in {higher}; lower in {lower}.\n")
    return "".join(lines)


def _surely(spreads: Mapping[str, Spread], sign: int) -> str:
    """The differences whose 95 % interval is above 0 (sign 1) or below it (-1), the largest first."""
    found = [(name, spread) for name, spread in spreads.items() if sign * spread.mean > spread.half_width]
    found.sort(key=lambda one: -abs(one[1].mean))
    told = [
        f"{name} ({'+' if sign > 0 else '−'}{abs(spread.mean):.1f} ± {spread.half_width:.1f})" for name, spread in found
    ]
    return ", ".join(told) or "none"


def _mean(values: Sequence[float]) -> str:
    if not values:
        return "-"
    spread = Spread.of(values)
    return f"{spread.mean:.1f}" if spread.n == 1 else f"{spread.mean:.1f} ± {spread.half_width:.1f}"


def _count(shots: int) -> str:
    return "one picture" if shots == 1 else f"{shots} pictures"
