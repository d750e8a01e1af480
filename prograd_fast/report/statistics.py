"""Numbers of a handful of runs: accuracies, their spread, and differences between two methods."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import nan, sqrt
from statistics import fmean, stdev

from prograd_fast.training import Record


def accuracies(runs: Sequence[Record], method: str, part: str) -> list[float]:
    """A method's accuracies on a part in percent, in the order of the runs; empty where it was not measured."""
    return [100 * run["accuracy"][part] for run in runs if run["method"] == method and part in run["accuracy"]]


@dataclass(frozen=True)
class Spread:
    """Values of several runs, at least one, and what they say together.

    Attributes:
        values: one of each run.
    """

    values: tuple[float, ...]

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """The spread of these values."""
        return cls(tuple(values))

    @property
    def n(self) -> int:
        """Number of runs."""
        return len(self.values)

    @property
    def mean(self) -> float:
        """Mean of the runs."""
        return fmean(self.values)

    @property
    def sd(self) -> float:
        """Sample standard deviation; NaN for one run."""
        return stdev(self.values) if self.n > 1 else nan

    @property
    def se(self) -> float:
        """Standard error of the mean; NaN for one run."""
        return self.sd / sqrt(self.n)

    @property
    def half_width(self) -> float:
        """Half of the mean's 95 % confidence interval (Student's t, n - 1 degrees of freedom); NaN for one run."""
        from scipy.stats import t

        return float(t.ppf(0.975, self.n - 1)) * self.se if self.n > 1 else nan

    @property
    def higher(self) -> int:
        """How many values are above zero: of differences, in how many runs the first method was higher."""
        return sum(value > 0 for value in self.values)

    @property
    def undecided(self) -> bool:
        """Whether the mean is less than two standard errors away from zero, or there is no standard error."""
        return not abs(self.mean) >= 2 * self.se

    def __str__(self) -> str:
        return f"{self.mean:.1f}" if self.n == 1 else f"{self.mean:.1f} ± {self.half_width:.1f} ({self.sd:.1f})"


def paired(runs: Sequence[Record], method: str, other: str, part: str) -> Spread:
    """Differences in percentage points, `method` minus `other` on a part, over the runs that both have.

    Two runs are a pair if they have the same partition and seed.

    Raises:
        ValueError: they have no run in common.
    """

    def by_run(name: str) -> dict[tuple[int | None, int], float]:
        return {(run["partition"], run["seed"]): 100 * run["accuracy"][part] for run in runs if run["method"] == name}

    first, second = by_run(method), by_run(other)
    differences = [first[key] - second[key] for key in first if key in second]
    if not differences:
        raise ValueError(f"no run of {method!r} has a partner of {other!r}")
    return Spread.of(differences)


def mean_path(paths: Sequence[Record], method: str) -> dict[int, tuple[float, float]]:
    """A method's mean accuracies on base and on new classes in percent, by number of steps.

    Args:
        paths: "method" and "accuracy" on "base" and "new" by number of steps, for each run; the steps are the same.
        method: whose path.
    """
    of = [path["accuracy"] for path in paths if path["method"] == method]
    return {
        step: (fmean(100 * path[step]["base"] for path in of), fmean(100 * path[step]["new"] for path in of))
        for step in of[0]
    }


def new_at_base(path: Sequence[tuple[float, float]], base: float) -> float:
    """The accuracy on new classes where a path of (base, new) first reaches an accuracy on base classes.

    Between two points of the path it is a straight line.

    Raises:
        ValueError: it never does.
    """
    if path[0][0] >= base:
        return path[0][1]
    for (x0, y0), (x1, y1) in pairwise(path):
        if x1 >= base:
            return y0 + (base - x0) / (x1 - x0) * (y1 - y0)
    raise ValueError(f"no point of the path has {base} on base classes")
