"""A plan draws the right pictures: base and new classes, unseen styles, long-tailed shots, no test picture learned."""

import math

import numpy as np
import pytest

from prograd_fast.data import PictureSet, load
from prograd_fast.data.splits import few_shot, long_tail
from prograd_fast.training import make_plan
from tests.conftest import SHAPES


def emoji_like() -> PictureSet:
    """4 classes in four styles, as in emoji: two of the task, one unseen, one that is neither."""
    styles = ["noto", "twemoji", "openmoji", "noto-v1"]
    entries = [(c, split, style) for c in range(4) for split in ("pool", "validation", "test") for style in styles]
    labels, splits, style = (np.array(column) for column in zip(*entries, strict=True))
    return PictureSet("made up", ("a", "b", "c", "d"), labels, splits, style, [b"%d" % i for i in range(len(entries))])


def test_base_to_new_plan():
    pictures = emoji_like()
    plan = make_plan(pictures, shots=1, seed=0, partition=1)
    assert list(plan.tests) == ["validation", "base", "new", "openmoji/base", "openmoji/new"]
    base, new = plan.tests["base"].classes, plan.tests["new"].classes
    assert plan.train.classes.tolist() == plan.tests["validation"].classes.tolist() == base.tolist()
    assert sorted([*base, *new]) == [0, 1, 2, 3]
    assert len(plan.train.rows) == 2
    for name, part in plan.tests.items():
        assert set(pictures.labels[part.rows]) == set(part.classes)
        assert set(pictures.style[part.rows]) == ({"openmoji"} if "openmoji" in name else {"noto", "twemoji"})
        assert set(pictures.split[part.rows]) == {"validation" if name == "validation" else "test"}
        assert not set(part.rows) & set(plan.train.rows)
        assert set(part.rows) <= set(plan.rows)
    assert plan.tests["new"].labels(pictures).tolist() == [0, 0, 1, 1]  # re-indexed from 0


def test_plan_over_all_classes(shapes):
    plan = make_plan(shapes, shots=3, seed=0, partition=None)
    assert list(plan.tests) == ["validation", "all"]
    assert len(plan.train.rows) == 3 * len(SHAPES)
    assert plan.tests["all"].class_names(shapes) == shapes.class_names


def test_long_tail_is_exponential_in_random_order():
    weights = long_tail(5, 16.0, seed=0)
    np.testing.assert_allclose(np.sort(weights), [1 / 16, 1 / 8, 1 / 4, 1 / 2, 1])
    assert not np.array_equal(weights, long_tail(5, 16.0, seed=1))
    assert long_tail(1, 16.0, seed=0).tolist() == [1.0]  # one class is the most frequent one
    assert long_tail(3, 1.0, seed=0).tolist() == [1.0] * 3


def test_long_tailed_plan():
    pictures = load("emoji")
    plan = make_plan(pictures, shots=16, seed=0, partition=None, imbalance=8.0)
    wanted = np.maximum(1, np.rint(16 * long_tail(44, 8.0, seed=0)).astype(int))
    pool = np.bincount(pictures.labels[few_shot(pictures, range(44), 1000, 0, plan_styles(plan, pictures))])
    learned = np.bincount(plan.train.labels(pictures).numpy(), minlength=44)
    assert learned.tolist() == np.minimum(wanted, pool).tolist()
    balanced, tail = (
        np.bincount(plan.tests[name].labels(pictures).numpy(), minlength=44) for name in ("balanced", "long-tail")
    )
    assert len(set(balanced.tolist())) == 1
    order = np.argsort(long_tail(44, 8.0, seed=0))
    assert (np.diff(tail[order]) >= 0).all()  # as frequent as those learned from
    assert 4 <= tail.max() / tail.min() <= 12  # 8, but for rounding of small numbers
    assert set(plan.tests["balanced"].rows) <= set(plan.tests["all"].rows)
    assert {"all", "openmoji/all"} <= set(plan.tests)


def plan_styles(plan, pictures: PictureSet) -> list[str]:
    return sorted(set(pictures.style[plan.train.rows]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"partition": 0, "imbalance": 2.0}, "no partition beside an imbalance"),
        ({"partition": None, "imbalance": 0.5}, "imbalance must be 1 or more"),
        ({"partition": None, "imbalance": math.nan}, "imbalance must be 1 or more"),
    ],
)
def test_long_tailed_plans_that_cannot_be(shapes, arguments, message):
    with pytest.raises(ValueError, match=message):
        make_plan(shapes, 2, 0, **arguments)
