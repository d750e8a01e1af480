"""What the runs of several methods show, in figures and in sentences. Everything here is computed from run records."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from prograd_fast.training import Record


@dataclass(frozen=True)
class Paired:
    """Differences between two methods on the same part, run by run (same partition, same shots).

    Attributes:
        mean: mean difference in percentage points.
        se: its standard error over the runs, in percentage points; NaN for one run.
        higher: in how many runs the first method was higher.
        n: number of runs.
    """

    mean: float
    se: float
    higher: int
    n: int

    @property
    def undecided(self) -> bool:
        """Whether the mean is less than two standard errors away from zero, or there is no standard error."""
        return not abs(self.mean) >= 2 * self.se


def accuracies(runs: Sequence[Record], method: str, part: str) -> list[float]:
    """A method's accuracies on a part in percent, in the order of the runs; empty where it was not measured."""
    return [100 * run["accuracy"][part] for run in runs if run["method"] == method and part in run["accuracy"]]


def mean_and_sd(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation; the latter is NaN for one value."""
    return fmean(values), stdev(values) if len(values) > 1 else float("nan")


def paired(runs: Sequence[Record], method: str, other: str, part: str) -> Paired:
    """`method` minus `other` on a part, over the runs that both have.

    Raises:
        ValueError: they have no run in common.
    """

    def by_run(name: str) -> dict[tuple[int | None, int], float]:
        return {(run["partition"], run["seed"]): 100 * run["accuracy"][part] for run in runs if run["method"] == name}

    first, second = by_run(method), by_run(other)
    differences = [first[key] - second[key] for key in first if key in second]
    if not differences:
        raise ValueError(f"no run of {method!r} has a partner of {other!r}")
    mean, sd = mean_and_sd(differences)
    return Paired(mean, sd / len(differences) ** 0.5, sum(d > 0 for d in differences), len(differences))


def sentences(runs: Sequence[Record]) -> list[str]:
    """Three sentences on base and new classes, whatever the runs show.

    Args:
        runs: records of zero-shot, coop and prograd, with "partition", "seed" and "accuracy" on "base" and "new".
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
        f"Differences are in percentage points, paired over {new.n} runs; their standard errors (se) are too small, "
        "because the runs share one test set and one pretrained model. Undecided: less than two se from zero.",
    ]


def _moved(difference: Paired) -> str:
    verb = "gained" if difference.mean >= 0 else "lost"
    return f"{verb} {abs(difference.mean):.1f} ({_spread(difference)})"


def _signed(difference: Paired) -> str:
    return f"{difference.mean:+.1f} on average, {_spread(difference)}"


def _spread(difference: Paired) -> str:
    return f"se {difference.se:.1f}, undecided" if difference.undecided else f"se {difference.se:.1f}"
