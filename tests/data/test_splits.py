"""Splits of a set: base and new classes, few-shot draws, and sets that cannot be."""

import numpy as np
import pytest

from prograd_fast.data import PictureSet
from prograd_fast.data.splits import base_and_new, few_shot, rows_of


@pytest.fixture
def pictures() -> PictureSet:
    """3 classes of 6, 6 and 3 pictures, two styles; the last picture of each class is for testing."""
    labels = np.array([0] * 6 + [1] * 6 + [2] * 3)
    split = np.array(["pool"] * 5 + ["test"] + ["pool"] * 5 + ["test"] + ["pool"] * 2 + ["test"])
    style = np.array(["flat", "line"] * 7 + ["flat"])
    return PictureSet("made up", ("a", "b", "c"), labels, split, style, [b""] * 15)


@pytest.mark.parametrize(
    ("labels", "split", "message"),
    [
        ([0, 1], ["pool"], "'labels': 2, 'split': 1, 'style': 2, 'source': 2"),
        ([0, 2], ["pool", "test"], "labels from 0 to 1"),
        ([-1, 1], ["pool", "test"], "labels from 0 to 1"),  # Python would take the last class
    ],
)
def test_sets_that_do_not_fit_together(labels, split, message):
    with pytest.raises(ValueError, match=f"odd: expected .*{message}"):
        PictureSet("odd", ("a", "b"), np.array(labels), np.array(split), np.array([""] * 2), [b""] * 2)


@pytest.mark.parametrize("n_classes", [2, 7, 44])
@pytest.mark.parametrize("partition", [0, 1])
def test_base_and_new_share_no_class_and_leave_none_out(n_classes, partition):
    base, new = base_and_new(n_classes, partition)
    assert len(base) == n_classes // 2
    assert sorted([*base, *new]) == list(range(n_classes))
    assert list(base) == sorted(base)


def test_partitions_are_the_same_on_every_machine():
    # written down: results are compared with those of earlier versions, so the halves must stay
    assert base_and_new(10, 0)[0].tolist() == [1, 4, 5, 6, 7]
    assert base_and_new(10, 1)[0].tolist() == [0, 2, 4, 8, 9]


def test_few_shot_draws_from_the_pool_only(pictures):
    rows = few_shot(pictures, [0, 1], shots=3, seed=0)
    assert len(set(rows)) == 6
    assert pictures.labels[rows].tolist() == [0] * 3 + [1] * 3
    assert set(pictures.split[rows]) == {"pool"}


def test_few_shot_gives_what_a_small_pool_has(pictures):
    assert sorted(few_shot(pictures, [2], shots=16, seed=0)) == [12, 13]


def test_few_shot_keeps_to_styles(pictures):
    assert set(pictures.style[few_shot(pictures, [0, 1, 2], 16, 0, styles=["line"])]) == {"line"}


def test_seeds_draw_differently_and_repeatably(pictures):
    draws = [few_shot(pictures, [0, 1], 2, seed).tolist() for seed in (0, 1, 2, 0)]
    assert draws[0] == draws[3]
    assert len({tuple(draw) for draw in draws}) > 1


def test_more_shots_of_a_seed_keep_the_fewer(pictures):
    # so that a comparison over shots adds pictures and does not exchange them
    assert set(few_shot(pictures, [0], 2, 0)) < set(few_shot(pictures, [0], 4, 0))


def test_rows_of(pictures):
    assert rows_of(pictures, "test", [0, 2]).tolist() == [5, 14]
    assert rows_of(pictures, "test", [0, 2], ["flat"]).tolist() == [14]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: few_shot(p, [0], 0, 0), "shots must be 1 or more, got 0"),
        (lambda p: few_shot(p, [0], 1, -1), "seed must be between 0 and 4294967295, got -1"),
        (lambda p: few_shot(p, [0], 1, 2**32), "seed must be between 0 and 4294967295, got 4294967296"),
        (lambda p: few_shot(p, [2], 1, 0, ["none"]), "class 'c' has no picture"),
        (lambda p: base_and_new(1, 0), "at least 2 classes, got 1"),
        (lambda p: base_and_new(4, -1), "partition must be between 0 and 4294967195, got -1"),
        (lambda p: base_and_new(4, 2**32 - 100), "partition must be between 0 and 4294967195, got 4294967196"),
    ],
)
def test_errors(pictures, call, message):
    with pytest.raises(ValueError, match=message):
        call(pictures)
