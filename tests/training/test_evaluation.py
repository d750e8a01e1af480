"""The measures of an evaluation are those of scikit-learn, of a computation by hand, and of the papers."""

import json

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn import metrics

from prograd_fast.training.evaluation import Confused, Evaluation, wilson

SIZES = [(1, 1), (7, 2), (40, 3), (300, 6), (200, 50)]  # pictures, classes


def random_evaluation(n: int, n_classes: int, seed: int = 0) -> Evaluation:
    """Predictions that are often right; with many classes, some have no picture and some are never predicted."""
    random = np.random.RandomState(seed)
    labels = random.randint(0, n_classes, n)
    logits = 2 * random.randn(n, n_classes)
    logits[np.arange(n), labels] += 2
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    top = np.argsort(-probabilities, axis=1, kind="stable")[:, :5]
    highest = np.take_along_axis(probabilities, top, 1).astype(np.float32)
    names = tuple(f"class {i}" for i in range(n_classes))
    return Evaluation(names, labels, top[:, 0], highest, top, tuple(f"{i}.png" for i in range(n)))


@pytest.mark.filterwarnings("ignore::UserWarning")  # it warns of classes without pictures, and of a single class
@pytest.mark.parametrize(("n", "n_classes"), SIZES)
def test_measures_are_those_of_scikit_learn(n, n_classes):
    found = random_evaluation(n, n_classes)
    given, said = found.labels, found.predicted
    assert found.accuracy == metrics.accuracy_score(given, said)
    assert found.balanced_accuracy == pytest.approx(metrics.balanced_accuracy_score(given, said), abs=1e-12)
    for name, measure in (("macro_f1", metrics.f1_score), ("macro_precision", metrics.precision_score)):
        expected = measure(given, said, average="macro", zero_division=0)
        assert getattr(found, name) == pytest.approx(expected, abs=1e-12)
    expected = metrics.confusion_matrix(given, said, labels=range(n_classes))
    assert np.array_equal(found.confusion(), expected)
    np.fill_diagonal(expected, 0)
    assert sorted(found.confused()) == [Confused(i, j, expected[i, j]) for i, j in np.argwhere(expected)]
    counts = [pair.n for pair in found.confused()]
    assert counts == sorted(counts, reverse=True)


@pytest.mark.parametrize(("n", "n_classes"), SIZES)
def test_results_of_classes(n, n_classes):
    found = random_evaluation(n, n_classes)
    for label, row in enumerate(found.per_class()):
        here = found.labels == label
        assert row[:3] == (f"class {label}", here.sum(), (found.predicted[here] == label).sum())
        if row.n:
            interval = binomtest(row.right, row.n).proportion_ci(method="wilson")
            assert (row.accuracy, row.low, row.high) == pytest.approx((row.right / row.n, *interval), abs=1e-12)
        else:
            assert np.isnan(row.accuracy)
            assert (row.low, row.high) == (0, 1)


def test_wilson_by_hand():
    z2 = 1.959963984540054**2
    assert wilson(0, 1) == pytest.approx((0, z2 / (1 + z2)))
    assert wilson(10, 10) == pytest.approx((10 / (10 + z2), 1))
    assert wilson(0, 0) == (0, 1)
    assert {wilson(0, n)[0] for n in range(50)} == {0}
    assert {wilson(n, n)[1] for n in range(50)} == {1}
    assert random_evaluation(40, 3).interval == wilson(int(random_evaluation(40, 3).right.sum()), 40)


def certain(confidences: list[float], right: list[bool]) -> Evaluation:
    """Two classes, all pictures of the first."""
    high = np.array(confidences, np.float32)
    predicted = np.where(right, 0, 1)
    top = np.stack([predicted, 1 - predicted], 1)
    names = tuple(map(str, range(len(high))))
    return Evaluation(("a", "b"), np.zeros(len(high), np.int64), predicted, np.stack([high, 1 - high], 1), top, names)


def test_calibration_by_hand():
    # bins of width 0.2: (0.4, 0.6] has 0.55 and 0.59, half right; (0.6, 0.8] has 0.75, wrong; (0.8, 1] has three right
    found = certain([0.55, 0.59, 0.75, 0.9, 1.0, 0.95], [True, False, False, True, True, True])
    assert [(b.n, b.accuracy) for b in found.calibration(5)] == [(2, 0.5), (1, 0), (3, 1)]
    assert [b.confidence for b in found.calibration(5)] == pytest.approx([0.57, 0.75, 0.95])
    assert found.ece(5) == pytest.approx((2 * 0.07 + 1 * 0.75 + 3 * 0.05) / 6)
    assert certain([1.0], [True]).ece() == 0


@pytest.mark.parametrize(("n", "n_classes"), SIZES)
def test_ece_is_a_sum_over_bins(n, n_classes):
    found = random_evaluation(n, n_classes)
    confidences, expected = found.probabilities[:, 0].astype(float), 0.0
    for low, high in zip(np.linspace(0, 1, 16)[:-1], np.linspace(0, 1, 16)[1:], strict=True):
        here = (confidences > low) & (confidences <= high)
        if here.any():
            expected += here.mean() * abs(confidences[here].mean() - (found.labels == found.predicted)[here].mean())
    assert found.ece() == pytest.approx(expected, abs=1e-12)


def test_wrong_pictures_come_with_the_most_confident_first():
    found = certain([0.6, 0.9, 0.8, 0.7, 0.9], [False, False, True, False, False])
    assert found.wrong().tolist() == [1, 4, 3, 0]
    assert certain([0.6], [True]).wrong().tolist() == []


@pytest.mark.parametrize(("n", "n_classes"), SIZES)
def test_record_is_strict_json_and_comes_back(n, n_classes):
    found = random_evaluation(n, n_classes)
    back = Evaluation.from_record(json.loads(json.dumps(found.to_record(), allow_nan=False)))
    assert (back.class_names, back.pictures) == (found.class_names, found.pictures)
    for name in ("labels", "predicted", "probabilities", "top"):
        one, other = getattr(back, name), getattr(found, name)
        assert one.dtype == other.dtype
        assert np.array_equal(one, other)


def test_probabilities_that_are_not_finite_are_null():
    found = random_evaluation(2, 2)
    found.probabilities[0] = np.nan
    record = json.loads(json.dumps(found.to_record(), allow_nan=False))
    assert record["probabilities"][0] == [None, None]
    assert np.array_equal(Evaluation.from_record(record).probabilities, found.probabilities, equal_nan=True)


@pytest.mark.parametrize(
    "change",
    [
        {"labels": [0]},
        {"labels": [0, 2]},
        {"labels": [0, -1]},
        {"labels": [0, 0.5]},
        {"labels": [0, None]},
        {"labels": [0, "a"]},
        {"labels": [0, 2**62]},
        {"labels": 3},
        {"top": [[0, 1]]},
        {"top": [[0, 1], [1]]},
        {"top": [0, 1]},
        {"top": [[0, 1], [1, 7]]},
        {"probabilities": [[0.5, 0.5], [0.5]]},
        {"probabilities": [[0.5, 0.5], [0.5, 1.5]]},
        {"probabilities": [[0.5, 0.5], [0.5, {}]]},
        {"pictures": ["a"]},
        {"pictures": ["a", 3]},
        {"class_names": ["a", 3]},
        {"class_names": None},
        {"pictures": [], "labels": [], "top": [], "probabilities": []},
    ],
)
def test_records_of_another_form_are_refused(change):
    with pytest.raises(ValueError, match=r"expected|no tables of numbers| is "):
        Evaluation.from_record({**random_evaluation(2, 2).to_record(), **change})
    with pytest.raises(ValueError, match="class_names is None"):
        Evaluation.from_record([])
