"""Mean, standard deviation and confidence interval of a handful of runs."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import nan, sqrt
from statistics import fmean, stdev


@dataclass(frozen=True)
class Spread:
    """What several runs gave.

    Attributes:
        mean: their mean.
        sd: sample standard deviation; NaN for one run.
        half_width: the 95 % confidence interval of the mean is `mean` ± this, by Student's t-distribution with n - 1
            degrees of freedom; NaN for one run.
        n: number of runs.
    """

    mean: float
    sd: float
    half_width: float
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Of at least one value."""
        n = len(values)
        if n == 1:
            return cls(values[0], nan, nan, 1)
        from scipy.stats import t

        sd = stdev(values)
        return cls(fmean(values), sd, float(t.ppf(0.975, n - 1)) * sd / sqrt(n), n)

    def __str__(self) -> str:
        return f"{self.mean:.1f}" if self.n == 1 else f"{self.mean:.1f} ± {self.half_width:.1f} ({self.sd:.1f})"
