"""The benchmarks compare like with like, and the table comes out: on tiny sizes, where no figure means anything."""

import json
from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from benchmarks import affine_shift, compare, gate_shift_fuse, neighbours, prompt_step, prompts, ranks, scaling_model
from benchmarks.losses import DUAL_LOSSES, LINEAR_DUAL_LOSSES
from benchmarks.measure import interleaved
from benchmarks.related_losses import SAMPLES, SOFT_WINGS, SQUARED_ERRORS, TEXT_TO_TEXT
from benchmarks.steps import STEPS
from prograd_fast.clip.packed.weights import Linear
from tests.paths import REPOSITORY

TINY = compare.Sizes(
    context=[(2, 4)],
    large=[(100,)],
    many=[(3,), (50,)],
    logits=[(2, 5), (4, 30)],
    linear=(8, 64, 16),
    stream=100,
    rounds=2,
    slow_rounds=1,
)


@pytest.fixture(autouse=True)
def _uncompiled():
    with torch.compiler.set_stance("force_eager"):  # the formula is tested here, compiling it takes 20 s
        yield


@pytest.mark.parametrize("conflict", [True, False])
def test_sides_of_a_step_agree(conflict):
    # 5 x 7: nothing that a vector's width divides; three calls: the bias corrections of AdamW differ
    steps = {name: make([(5, 7), (3,)], conflict) for name, make in STEPS.items() if name != compare.FLOOR}
    for _ in range(3):
        results = {name: step() for name, step in steps.items()}
    expected = results.pop("authors + AdamW")
    for result in results.values():
        # AdamW divides by the root of v: float32 roundings of single operators, in another order
        assert_close([p.detach() for p in result], [p.detach() for p in expected], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("sides", "size"),
    [
        (DUAL_LOSSES, (6, 37)),
        (LINEAR_DUAL_LOSSES, (6, 37, 16)),
        (SAMPLES, (3, 4, 37)),
        (SQUARED_ERRORS, (272,)),
        (SOFT_WINGS, (272,)),
        (TEXT_TO_TEXT, (3, 7, 16)),
    ],
)
def test_sides_of_a_loss_agree(sides, size):
    first, *others = (tuple(one.detach() for one in make(*size)()) for make in sides.values())
    for other in others:
        assert_close(other, first, rtol=1e-4, atol=1e-6)  # cotangents are differences of probabilities


@pytest.mark.parametrize(
    ("shifts", "shape"), [(affine_shift, (2, 17, 3, 4, 5)), (gate_shift_fuse, (2, 3, 8, 4, 5))], ids=["affine", "gated"]
)
def test_sides_of_a_shift_agree(shifts, shape):
    first, *others = (make(shape)() for make in shifts.FORWARD.values())
    for other in others:
        assert_close(other, first, rtol=1e-4, atol=1e-5)


def test_the_table_comes_out(tmp_path, monkeypatch):
    monkeypatch.setattr(
        compare, "peak_memory", lambda side, *arguments: 10**9 + len(side)
    )  # a process of its own: seconds
    report = compare.compare(TINY)
    assert json.loads(compare.write(report, tmp_path).read_text()) == report
    for row in report["rows"]:
        better = row["our_figure"] / row["their_figure"]
        assert row["ratio"] == pytest.approx(better if row["unit"] in ("GB/s", "GFLOP/s") else 1 / better)
        assert row["missed"] == bool(row["bound_by"])
    lines = compare.table(report["rows"]).splitlines()
    assert len(lines) == 2 + len(report["rows"])
    assert len({line.count("|") for line in lines}) == 1


SMALL = {"affine shift": (2, 17, 3, 4, 5), "gate, shift and fuse": (2, 3, 8, 4, 5), "local soft-argmax": 98}


@pytest.mark.parametrize("case", neighbours.CASES, ids=lambda case: case.work)
def test_sides_of_a_neighbour_agree(case):
    first, *others = (make(SMALL.get(case.work, 1))() for make in case.sides.values())
    for other in others:
        for got, want in zip(other, first, strict=True):
            # a difference of products: in float32 the formula of the soft-argmax is off by 1.4e-3 of its largest one
            assert_close(got, want, rtol=0, atol=3e-3 * float(want.abs().max()))


def test_the_table_of_neighbours_comes_out():
    sizes = [SMALL.get(case.work, 1) for case in neighbours.CASES]
    cases = [replace(case, sizes=(size, size)) for case, size in zip(neighbours.CASES, sizes, strict=True)]
    report = neighbours.compare(TINY, cases)
    assert len(report["rows"]) == 6 * len(cases)
    assert all(row["missed"] == bool(row["bound_by"]) for row in report["rows"])
    for case, size in zip(cases, sizes, strict=True):
        work = f"{case.work}, {size}"
        out_of_place, in_place = (row for row in report["rows"] if row["unit"] == "GB/s" and row["work"] == work)
        timings = {side: timing["median"] for side, timing in report["timings"][work].items()}
        for row in (out_of_place, in_place):
            moved = case.moved * case.elements(size)
            assert row["our_figure"] * 1e9 == pytest.approx(moved / timings[row["ours"]])
        streams = {side: n * TINY.stream / 1e9 / timings[side] for side, n in [("copy", 8), ("triad", 12)]}
        assert out_of_place["their_figure"] == pytest.approx(max(streams.values()))
        assert in_place["their_figure"] == pytest.approx(12 * TINY.stream / 1e9 / timings["triad in place"])
        assert (out_of_place["target"], in_place["target"]) == (neighbours.LEAST_SHARE, None)


def test_rounds_are_interleaved():
    order = []
    timings = interleaved({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, rounds=2, shortest=0)
    assert "".join(order) == "aaaa" + "bbbb" + "ab" + "ba"  # warm-up, then every round starts with another side
    assert {t.rounds for t in timings.values()} == {2}


TINY_TOWER = {"width": 64, "layers": 2}


def test_sides_of_a_prompt_step_agree():
    for got, want in zip(*prompts.gradients(6, **TINY_TOWER), strict=True):
        assert_close(got, want, rtol=0, atol=1e-5 * float(want.abs().max()))


def test_products_are_those_of_the_packed_tower():
    """Counted from the encoder's own calls."""
    net = prompts.net_of(6, **TINY_TOWER)
    net.class_features().sum().backward()  # constants of the first block are there
    found = []

    class Counted(Linear):
        def __init__(self, layer: Linear):
            self.__dict__ |= layer.__dict__

        def __call__(self, x):
            found.append((x[..., 0].numel(), *self.weight.T.shape))
            return super().__call__(x)

        def backward(self, d):
            found.append((d[..., 0].numel(), *self.weight.shape))
            return super().backward(d)

    _, constants = net.encoder._constants
    weights = constants.part.weights
    for holder in (weights, *weights.blocks):
        for name, layer in vars(holder).items():
            if isinstance(layer, Linear):
                object.__setattr__(holder, name, Counted(layer))
    net.class_features().sum().backward()
    counts = Counter(shape for shape in found if shape[0])
    assert counts == prompts.products(net, 1)


def test_the_prompt_table_comes_out(tmp_path, monkeypatch):
    monkeypatch.setattr(prompt_step, "peak_memory", lambda side, *arguments: 10**9)  # a process of its own: seconds
    config = {"embed_dim": 64, "vision_cfg": {"layers": 1, "width": 64, "image_size": 32}, "text_cfg": {"layers": 1}}
    monkeypatch.setattr("open_clip.get_model_config", lambda name: config)
    works = prompt_step.Works(6, 8, (5, 2), 40, 4e6, 12, rounds=1, model=TINY_TOWER)
    report = prompt_step.compare(works)
    assert json.loads(compare.write(report, tmp_path, "-prompt-step").read_text()) == report
    lines = compare.table(report["rows"], "of floor").splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert all(row["missed"] == bool(row["bound_by"]) for row in report["rows"])


@pytest.mark.slow
def test_the_table_of_ranks_comes_out():
    rows = ranks.measured([40], rounds=1)
    flops = {side: figures[0] for side, figures in rows[0][1].items()}
    assert flops["two"] < 0.7 * flops["one"]
    assert flops["two, twice the names"] == pytest.approx(flops["one"], rel=0.3)
    lines = ranks.table(rows).splitlines()
    assert len({line.count("|") for line in lines}) == 1


def test_the_page_has_the_table_of_the_model():
    assert scaling_model.table() in (REPOSITORY / "docs" / "scaling.md").read_text("utf-8")


def test_collectives_of_the_model():
    """Rings of four within a node and of 16 between nodes send as much, without start-ups; and start-ups alone."""
    machine = scaling_model.Machine(near=(0.0, 10.0), far=(0.0, 2.0), node=4)
    shares = [100.0 / 4] * 3  # each step of a ring sends the share of one
    assert machine.gather(100.0, 4) == pytest.approx(sum(shares) / 10)
    assert machine.reduce(100.0, 16) == pytest.approx(2 * 15 * (100.0 / 16) / 2)
    assert scaling_model.Machine().gather(100.0, 1) == 0
    assert scaling_model.Machine(far=(3.0, 1e30), node=4).reduce(1.0, 8) == pytest.approx(2 * 3 * 3.0)


def test_the_model_of_a_step():
    machine = scaling_model.Machine(rate=1.0, bandwidth=1e30, pause=0.0)
    work = scaling_model.Work(names=10, tokens=3, width=2, layers=1, features=5, batch=4)
    tower, head = 3 * 2 * 10 * 3 * (12 * 2 * 2), 3 * 2 * 4 * 10 * 5
    assert work.class_parallel(1, machine) == (tower + head, 0)
    assert work.class_parallel(2, machine)[0] == tower / 2 + head
    assert work.data_parallel(2, machine)[0] == tower + head / 2
