"""Guards the crops that methods without steps take together: which, how many, and what is made of them."""

import json
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from prograd_fast.methods import GDA, METHODS, GradientMethod, ProKeR, TipAdapter, TipAdapterF, ZeroShot
from prograd_fast.methods.gda import gaussians
from prograd_fast.methods.proker import FIXED
from prograd_fast.training import TrainOptions, encode_pictures, make_plan, run_method
from prograd_fast.training.record import plan_facts, run_facts
from prograd_fast.training.views import View
from tests.clip.support import Counted
from tests.tolerances import assert_close


@pytest.fixture
def plan(shapes):
    return make_plan(shapes, shots=2, seed=3, partition=None)


def seen(clip, shapes, plan, number: int) -> torch.Tensor:
    """(number, N, D): crops of half of the area or more, as the authors of these methods take them."""
    rows = plan.train.rows
    views = (View(3, i, 16, least=0.5) for i in range(number))
    return torch.stack([encode_pictures(clip, shapes, rows, view=view).of(rows) for view in views])


def learner(method, clip, shapes, plan, views, **more):
    features = encode_pictures(clip, shapes, plan.rows)
    return run_method(method, clip, features, plan, options=TrainOptions(views=views), **more).learner


@pytest.mark.parametrize(("views", "number"), [(0, 10), (3, 3)])
def test_tip_adapters_keys_are_means_of_crops(clip, shapes, plan, views, number):
    head = learner(TipAdapter(), clip, shapes, plan, views).module
    assert_close(head.keys, F.normalize(seen(clip, shapes, plan, number).mean(0), dim=-1), "tower", torch.float32)
    assert len(head.values) == len(plan.train.rows)


def test_gda_and_proker_take_each_crop_as_a_picture(clip, shapes, plan):
    crops = seen(clip, shapes, plan, 10)
    labels = plan.train.labels(shapes).repeat(10)
    head = learner(GDA(), clip, shapes, plan, 0).module
    _, _, weight, bias = gaussians(crops.flatten(0, 1), labels, len(shapes.class_names))
    assert torch.allclose(head.weight, weight.float(), rtol=1e-2, atol=1e-2 * float(weight.abs().max()))
    assert torch.allclose(head.bias, bias.float(), rtol=1e-2)
    fixed = replace(plan, tests={name: part for name, part in plan.tests.items() if name != "validation"})
    head = learner(ProKeR(), clip, shapes, fixed, 0).module
    assert_close(head.pictures, crops.flatten(0, 1), "tower", torch.float32)
    assert float(head.beta) == pytest.approx(FIXED[2][0])  # of two pictures per class, not of twenty rows


def test_without_views_pictures_are_seen_as_they_are(clip, shapes, plan):
    whole = encode_pictures(clip, shapes, plan.rows).of(plan.train.rows)
    for method in (TipAdapter(), ProKeR()):
        head = learner(method, clip, shapes, plan, None).module
        assert torch.equal(head.keys if isinstance(method, TipAdapter) else head.pictures, whole)


def test_crops_come_from_the_cache(clip, shapes, plan, tmp_path, monkeypatch):
    counted = Counted(clip, monkeypatch)
    for _ in range(2):
        learner(GDA(), clip, shapes, plan, 4, cache=tmp_path)
    # four views and the pictures themselves, which `learner` encodes without the cache
    assert counted.batches == 4 + 2 * len(range(0, len(plan.rows), 32))


def test_keys_that_are_trained_begin_as_means_and_see_crops_of_the_same_size(clip, shapes, plan, monkeypatch):
    looked_at = set()
    of = View.of
    monkeypatch.setattr(View, "of", lambda view, *args: looked_at.add((view.number, view.least)) or of(view, *args))
    head = learner(TipAdapterF(epochs=2, lr=1e-9), clip, shapes, plan, 3).module
    assert looked_at == {(number, 0.5) for number in range(3)}
    assert_close(head.keys, F.normalize(seen(clip, shapes, plan, 3).mean(0), dim=-1), "tower", torch.float32)


def test_a_run_without_crops_is_another_run(clip, shapes, plan):
    facts = {}
    for method in (GDA(), ZeroShot()):
        for views in (None, 0):
            found = run_facts(method, clip, plan_facts(shapes, plan), TrainOptions(views=views))
            facts[method.name, views] = json.loads(json.dumps(found)).get("crops")
    assert facts.pop(("gda", 0)) == {"averaged": False, "number": 10, "least": 0.5}
    assert set(facts.values()) == {None}


def test_crops_that_are_rows_of_their_own_are_for_methods_without_steps():
    """A step takes a row for each picture."""
    assert all(kind.crops is None or kind.crops.averaged for kind in METHODS if issubclass(kind, GradientMethod))
