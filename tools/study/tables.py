"""The tables of the study's page, made of its runs."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from prograd_fast.methods import METHODS
from prograd_fast.report.statistics import Spread, accuracies, paired
from prograd_fast.report.tables import TITLES
from tools.study.results import Run

PARTS = ("base", "new", "harmonic mean")
SHOTS = 16  # of all tables but that by shots
ORDER = [kind.name for kind in METHODS]


def as_published(runs: Sequence[Run]) -> list[Run]:
    """The runs of the methods as they are: without projection, but for ProGrad, which is CoOp with all of it."""
    named = [{**run, "method": "prograd"} if run["method"] == "coop" and run["lambda"] == 1 else run for run in runs]
    return [run for run in named if run["method"] == "prograd" or run["lambda"] in (None, 0.0)]


def of(runs: Sequence[Run], **facts: object) -> list[Run]:
    """The runs with these facts."""
    return [run for run in runs if all(run[name] == fact for name, fact in facts.items())]


def methods_table(runs: Sequence[Run], name: str) -> str:
    """All methods on a set as they are: mean accuracies, and differences from zero-shot with 95 % intervals."""
    here = of(as_published(runs), set=name, shots=SHOTS)
    headers = [f"{name}, {SHOTS} shots", *PARTS, *(f"{part} − zero-shot" for part in PARTS), "seconds"]
    rows = []
    for method in [method for method in ORDER if any(run["method"] == method for run in here)]:
        means = [_mean(accuracies(here, method, part)) for part in PARTS]
        gains = [_difference(here, method, "zero-shot", part) if method != "zero-shot" else "" for part in PARTS]
        seconds = sorted(run["seconds"] for run in here if run["method"] == method)
        rows.append([TITLES[method], *means, *gains, f"{seconds[len(seconds) // 2]:.2g}"])
    return _markdown(headers, rows)


class Comparison(NamedTuple):
    """A method with projection against the same without, on one part of a set.

    Attributes:
        p: Two-sided, of Student's t of the paired differences; 1 where all of them are 0.
    """

    method: str
    set: str
    lambda_: float
    part: str
    spread: Spread
    p: float


def comparisons(runs: Sequence[Run], parts: Sequence[str] = PARTS) -> list[Comparison]:
    """All pairs of a λ and λ = 0, method by method, then set by set, on the parts that the method was measured on."""
    found = []
    for method in ORDER:
        for name in dict.fromkeys(run["set"] for run in runs):
            here = of(runs, set=name, shots=SHOTS, method=method)
            for lambda_ in sorted({run["lambda"] for run in here} - {None, 0.0}):
                pair = [{**run, "method": str(run["lambda"])} for run in here]
                for part in parts:
                    if all(part in run["accuracy"] for run in here):
                        spread = paired(pair, str(lambda_), "0.0", part)
                        found.append(Comparison(method, name, lambda_, part, spread, _p_value(spread)))
    return found


def decided(found: Sequence[Comparison], level: float = 0.05) -> set[Comparison]:
    """Those that Holm's procedure keeps, so that the chance of any false one among them is at most `level`."""
    kept = set[Comparison]()
    for i, one in enumerate(sorted(found, key=lambda one: one.p)):
        if one.p > level / (len(found) - i):
            break
        kept.add(one)
    return kept


def projection_table(runs: Sequence[Run]) -> str:
    """For each method with λ and each set: accuracies without projection, and what half and all of it change.

    In bold what `decided` keeps of all comparisons of this table, harmonic means apart, which the others decide.
    """
    found = comparisons(runs)
    bold = decided([one for one in found if one.part != PARTS[-1]])
    cells = {(one.method, one.set, one.lambda_, one.part): _spread(one.spread, one in bold) for one in found}
    lambdas = sorted({one.lambda_ for one in found})
    headers = ["method", "set", *(f"{part}, λ 0" for part in PARTS)]
    headers += [f"λ {lambda_:g}: {part}" for lambda_ in lambdas for part in PARTS] + ["conflicts %"]
    rows = []
    for method, name in dict.fromkeys((one.method, one.set) for one in found):
        without = of(runs, set=name, shots=SHOTS, method=method, **{"lambda": 0.0})
        means = [_mean(accuracies(without, method, part)) for part in PARTS]
        changes = [cells.get((method, name, lambda_, part), "-") for lambda_ in lambdas for part in PARTS]
        conflicts = [run["conflict"] for run in without if run["conflict"] is not None]
        rows.append([TITLES[method], name, *means, *changes, f"{100 * sum(conflicts) / len(conflicts):.0f}"])
    return _markdown(headers, rows)


def counts_table(runs: Sequence[Run]) -> str:
    """How many comparisons with λ = 0 went up, whose intervals exclude 0, and which Holm's procedure keeps."""
    found = [one for one in comparisons(runs) if one.part != PARTS[-1]]
    kept = decided(found)
    headers = ["λ", "part", "comparisons", "mean up", "interval above 0", "interval below 0", "Holm up", "Holm down"]
    rows = []
    for lambda_ in sorted({one.lambda_ for one in found}):
        for part in PARTS[:-1]:
            here = [one for one in found if one.lambda_ == lambda_ and one.part == part]
            tests: list[Callable[[Comparison], bool]] = [
                lambda one: True,
                lambda one: one.spread.mean > 0,
                lambda one: one.spread.mean > one.spread.half_width,
                lambda one: -one.spread.mean > one.spread.half_width,
                lambda one: one in kept and one.spread.mean > 0,
                lambda one: one in kept and one.spread.mean < 0,
            ]
            rows.append([f"{lambda_:g}", part, *(str(sum(map(test, here))) for test in tests)])
    return _markdown(headers, rows)


def by_shots(runs: Sequence[Run], name: str) -> list[Run]:
    """The runs on a set of those methods, as they are, that have runs of every number of shots."""
    here = of(as_published(runs), set=name)
    shots = {run["shots"] for run in here}
    whole = {method for method in ORDER if {run["shots"] for run in of(here, method=method)} == shots}
    return [run for run in here if run["method"] in whole]


def shots_table(runs: Sequence[Run], name: str) -> str:
    """Mean accuracies with 95 % intervals by shots."""
    here = by_shots(runs, name)
    shots = sorted({run["shots"] for run in here})
    rows = []
    for method in [method for method in ORDER if of(here, method=method)]:
        for part in PARTS:
            found = [accuracies(of(here, shots=k), method, part) for k in shots]
            if all(found):
                rows.append([TITLES[method], part, *(_of_spread(Spread.of(values)) for values in found)])
    return _markdown([name, "", *(f"{k} shots" for k in shots)], rows)


def _p_value(spread: Spread) -> float:
    from scipy.stats import ttest_1samp

    if not spread.sd > 0:
        return 0.0 if spread.mean else 1.0
    return float(ttest_1samp(spread.values, 0.0).pvalue)


def _difference(runs: Sequence[Run], method: str, other: str, part: str) -> str:
    return _spread(paired(runs, method, other, part)) if accuracies(runs, method, part) else "-"


def _spread(spread: Spread, bold: bool = False) -> str:
    mean = round(spread.mean, 1) or 0.0  # no minus before a zero
    said = f"{mean:+.1f} ± {spread.half_width:.1f}".replace("-", "−")
    return f"**{said}**" if bold else said


def _of_spread(spread: Spread) -> str:
    return f"{spread.mean:.1f} ± {spread.half_width:.1f}"


def _mean(values: Sequence[float]) -> str:
    return f"{sum(values) / len(values):.1f}" if values else "-"


def _markdown(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [headers, ["---"] * len(headers), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"
