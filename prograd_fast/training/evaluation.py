"""Predictions for test pictures, one by one, and the measures that follow: accuracies, F1, calibration."""

from dataclasses import dataclass
from math import sqrt
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from prograd_fast.files.reading import check_kinds

KEPT = 5  # the most probable classes of a picture that are kept
_Z = 1.959963984540054  # 97.5 % of the normal distribution are below it: intervals of 95 %

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float32]


class ClassResult(NamedTuple):
    """The result of one class.

    Attributes:
        name: of the class.
        n: its pictures.
        right: those that were recognised.
        accuracy: right / n in [0, 1]; NaN for a class without pictures.
        low: lower end of Wilson's 95 % interval of the accuracy.
        high: its upper end.
    """

    name: str
    n: int
    right: int
    accuracy: float
    low: float
    high: float


class Confused(NamedTuple):
    """So many pictures of one class that were taken for another one; both are indices into the class names."""

    label: int
    predicted: int
    n: int


class Bin(NamedTuple):
    """Pictures with confidences in (low, high], their mean confidence and their accuracy."""

    low: float
    high: float
    n: int
    confidence: float
    accuracy: float


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Labels and predictions of N >= 1 pictures among C classes.

    Attributes:
        class_names: C names.
        labels: (N,) int64, indices into `class_names`.
        predicted: (N,) int64, the most probable class; of equal ones the first.
        probabilities: (N, k) float32, the k = min(C, `KEPT`) highest, in falling order.
        top: (N, k) int64, their classes.
        pictures: what each picture is called: its path in the set's folder, or its index in an embedded set.

    Raises:
        ValueError: no picture, shapes that do not fit together, a class that is not there, `predicted` is not the first
            of `top`, or a probability is out of range.
    """

    class_names: tuple[str, ...]
    labels: IntArray
    predicted: IntArray
    probabilities: FloatArray
    top: IntArray
    pictures: tuple[str, ...]

    def __post_init__(self) -> None:
        n, k = len(self.pictures), min(len(self.class_names), KEPT)
        expected = {"labels": (n,), "predicted": (n,), "probabilities": (n, k), "top": (n, k)}
        found = {name: getattr(self, name).shape for name in expected}
        if not n or found != expected:
            raise ValueError(f"an evaluation of {n} pictures: expected shapes {expected}, got {found}")
        for name in ("labels", "top"):
            if not np.isin(getattr(self, name), range(len(self.class_names))).all():
                raise ValueError(f"{name}: expected indices of {len(self.class_names)} classes, got others")
        if (self.predicted != self.top[:, 0]).any():
            raise ValueError("predicted: expected the first of top")
        if ((self.probabilities < 0) | (self.probabilities > 1)).any():
            raise ValueError("probabilities: expected numbers from 0 to 1")

    def __len__(self) -> int:
        """The number of pictures N."""
        return len(self.pictures)

    @property
    def right(self) -> NDArray[np.bool_]:
        """(N,), whether each picture was recognised."""
        return self.predicted == self.labels

    @property
    def confidences(self) -> FloatArray:
        """(N,), the probability of each prediction."""
        return self.probabilities[:, 0]

    @property
    def accuracy(self) -> float:
        """Share of pictures that were recognised, in [0, 1]."""
        return float(self.right.mean())

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval of the accuracy."""
        return wilson(int(self.right.sum()), len(self))

    @property
    def balanced_accuracy(self) -> float:
        """Mean accuracy of the classes that have pictures, each counted once: macro recall."""
        n, right = self._counts()
        return float((right[n > 0] / n[n > 0]).mean())

    @property
    def macro_precision(self) -> float:
        """Mean over classes of right / predicted as the class; 0 for a class that has pictures and is never predicted.

        Classes that neither have pictures nor are predicted do not count, as in scikit-learn.
        """
        _, right = self._counts()
        times = self._predictions()
        return float((right / np.maximum(times, 1))[self._present()].mean())

    @property
    def macro_f1(self) -> float:
        """Mean over classes of F1 = 2 right / (pictures + predictions); the classes are those of `macro_precision`."""
        n, right = self._counts()
        return float((2 * right / np.maximum(n + self._predictions(), 1))[self._present()].mean())

    def per_class(self) -> list[ClassResult]:
        """The result of each class, in the order of `class_names`."""
        rows = []
        for name, n, right in zip(self.class_names, *(counts.tolist() for counts in self._counts()), strict=True):
            rows.append(ClassResult(name, n, right, right / n if n else float("nan"), *wilson(right, n)))
        return rows

    def confusion(self) -> IntArray:
        """(C, C) counts: a row for each label, a column for each prediction."""
        matrix = np.zeros((len(self.class_names),) * 2, np.int64)
        np.add.at(matrix, (self.labels, self.predicted), 1)
        return matrix

    def confused(self) -> list[Confused]:
        """Pairs of classes that were taken for one another, the most frequent first."""
        wrong = ~self.right
        pairs, counts = np.unique(np.stack([self.labels[wrong], self.predicted[wrong]]), axis=1, return_counts=True)
        order = np.argsort(-counts, kind="stable")
        return [Confused(*map(int, (*pairs[:, i], counts[i]))) for i in order]

    def calibration(self, bins: int = 15) -> list[Bin]:
        """Confidence against accuracy in `bins` bins of equal width; those without pictures are left out."""
        edges = np.linspace(0, 1, bins + 1)
        confidences = self.confidences.astype(np.float64)
        places = np.clip(np.searchsorted(edges, confidences, side="left") - 1, 0, bins - 1)
        found = []
        for i in np.unique(places):
            here = places == i
            means = float(confidences[here].mean()), float(self.right[here].mean())
            found.append(Bin(float(edges[i]), float(edges[i + 1]), int(here.sum()), *means))
        return found

    def ece(self, bins: int = 15) -> float:
        """Expected calibration error: mean distance of confidence and accuracy over the bins, weighted by pictures.

        Source: Guo et al. 2017, arXiv:1706.04599, equation 3.
        """
        return sum(b.n * abs(b.confidence - b.accuracy) for b in self.calibration(bins)) / len(self)

    def wrong(self) -> IntArray:
        """Indices of the pictures that were not recognised, the most confident prediction first."""
        indices = np.flatnonzero(~self.right)
        return indices[np.argsort(-self.confidences[indices], kind="stable")]

    def to_record(self) -> dict[str, Any]:
        """The evaluation in JSON's types; `from_record` takes it back."""
        return {
            "class_names": list(self.class_names),
            "pictures": list(self.pictures),
            "labels": self.labels.tolist(),
            "top": self.top.tolist(),
            "probabilities": [[_number(value) for value in row] for row in self.probabilities],
        }

    @classmethod
    def from_record(cls, record: Any) -> "Evaluation":
        """The evaluation that `to_record` wrote, maybe in a file that somebody has changed since.

        Raises:
            ValueError: it is not of that form.
        """
        check_kinds(record, dict.fromkeys(("class_names", "pictures", "labels", "top", "probabilities"), list))
        for name in ("class_names", "pictures"):
            if not all(isinstance(value, str) for value in record[name]):
                raise ValueError(f"{name}: expected a list of texts")
        try:
            labels, top = (np.array(record[name]) for name in ("labels", "top"))
            probabilities = np.array(record["probabilities"], np.float32)  # null becomes NaN
        except (TypeError, ValueError) as error:
            raise ValueError(f"labels, top or probabilities are no tables of numbers: {error}") from error
        if labels.dtype != np.int64 or top.dtype != np.int64 or top.ndim != 2:
            raise ValueError("labels and top: expected whole numbers, one and several for each picture")
        return cls(tuple(record["class_names"]), labels, top[:, 0], probabilities, top, tuple(record["pictures"]))

    def _counts(self) -> tuple[IntArray, IntArray]:
        """(C,) pictures of each class, and those of them that were recognised."""
        n_classes = len(self.class_names)
        return (
            np.bincount(self.labels, minlength=n_classes),
            np.bincount(self.labels[self.right], minlength=n_classes),
        )

    def _predictions(self) -> IntArray:
        """(C,) how often each class was predicted."""
        return np.bincount(self.predicted, minlength=len(self.class_names))

    def _present(self) -> NDArray[np.bool_]:
        """(C,) whether a class has pictures or is predicted."""
        return self._counts()[0] + self._predictions() > 0


def wilson(right: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share `right` / `n`, which holds for few pictures too; (0, 1) for n = 0.

    Source: Wilson 1927, doi:10.1080/01621459.1927.10502953; the form is that of Brown, Cai and DasGupta 2001.
    """
    if not n:
        return 0.0, 1.0
    share, weight = right / n, _Z**2 / n
    middle = share + weight / 2
    half = _Z * sqrt(share * (1 - share) / n + weight / (4 * n))
    # the ends of "none" and "all" are exact but for rounding
    low = (middle - half) / (1 + weight) if right else 0.0
    return low, (middle + half) / (1 + weight) if right < n else 1.0


def _number(value: np.float32) -> float | None:
    """The shortest number that is this float32; JSON has no NaN."""
    return float(str(value)) if np.isfinite(value) else None
