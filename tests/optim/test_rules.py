"""Guards the rules against formulas in float64, torchjd's aggregators and the authors' subspace; state and edges."""

import copy
import math

import numpy as np
import pytest
import torch

from prograd_fast import reference, rules
from tests.paths import GOLDEN
from tests.tolerances import assert_close, relative_error

torch.set_num_threads(1)


def pairs(n=40, dimension=6, dtype=torch.float64):
    """Gradient pairs of all kinds: random, of very different lengths, nearly parallel and nearly opposite."""
    g = torch.Generator().manual_seed(0)
    draw = lambda: torch.randn(n, dimension, generator=g, dtype=torch.float64)  # noqa: E731
    a, b = draw(), draw()
    a[::4] *= 100
    b[1::4] = 0.7 * a[1::4] + 0.1 * b[1::4]
    b[2::4] = -0.4 * a[2::4] + 0.1 * b[2::4]
    return a.to(dtype), b.to(dtype)


def entries_of(a, b):
    """One unit for each row."""
    return reference.gram([a], [b], "row")


def step(rule, a, b, state=None):
    """g of every row."""
    return reference.combine(a, b, rule(entries_of(a, b), {} if state is None else state))


# ---- against formulas written over the vectors themselves


def prograd(a, b, lambda_):
    return a - lambda_ * min(0.0, a @ b) / (b @ b) * b


def pcgrad(a, b):
    return a + b if a @ b >= 0 else (a - (a @ b) / (b @ b) * b) + (b - (a @ b) / (a @ a) * a)


def cagrad(a, b, c):
    """By ternary search in the convex objective."""
    g0 = (a + b) / 2
    objective = lambda w: (w * a + (1 - w) * b) @ g0 + c * g0.norm() * (w * a + (1 - w) * b).norm()  # noqa: E731
    low, high = 0.0, 1.0
    for _ in range(200):
        left, right = low + (high - low) / 3, high - (high - low) / 3
        low, high = (low, right) if objective(left) <= objective(right) else (left, high)
    g = (low + high) / 2 * a + (1 - (low + high) / 2) * b
    return g0 + c * g0.norm() / g.norm() * g


VECTOR_FORMULAS = {
    "prograd": (rules.ProGrad(0.8), lambda a, b: prograd(a, b, 0.8)),
    "pcgrad": (rules.PCGrad(), pcgrad),
    "gradvac at first": (rules.GradVac(), pcgrad),
    "cagrad 0": (rules.CAGrad(0.0), lambda a, b: (a + b) / 2),
    "bloop, b prepared": (rules.Bloop(lambda_=0.3), lambda a, b: a + 0.3 * b),
    "subspace, a prepared": (rules.Subspace(torch.eye(1)), lambda a, b: a),
}


@pytest.mark.parametrize("name", VECTOR_FORMULAS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_formula(name, dtype):
    rule, formula = VECTOR_FORMULAS[name]
    a, b = pairs(dtype=dtype)
    coefficients = rule(entries_of(a, b), {})
    assert coefficients.dtype == dtype
    assert coefficients.shape == (len(a), 2)
    for x, y, g in zip(a.double(), b.double(), step(rule, a, b), strict=True):
        expected = formula(x, y)
        assert_close(g, expected, "formula", dtype, scale=torch.maximum(x.abs().max(), y.abs().max()))


@pytest.mark.parametrize("c", [0.2, 0.5, 0.9])
def test_cagrad_finds_the_minimum(c):
    a, b = pairs(12)
    for x, y, g in zip(a, b, step(rules.CAGrad(c), a, b), strict=True):
        # a search stops where the objective is flat to rounding: half of the digits
        assert relative_error(g, cagrad(x, y, c)) < 1e-6


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_cagrad_float32_does_not_overflow(scale):
    """The coefficients do not depend on the gradients' common length, though its fourth power is no float32 number."""
    a, b = pairs(dtype=torch.float32)
    expected = rules.CAGrad()(entries_of(a, b), {})
    actual = rules.CAGrad()(entries_of(a, b) * scale**2, {})
    assert_close(actual, expected, "formula", torch.float32)


def test_agem_tests_all_units_together():
    """One conflict among agreeing units: over all of them there is none; and the other way round."""
    rule = rules.AGEM()
    agree = torch.tensor([[1.0, -1.0, 2.0], [9.0, 5.0, 3.0]])
    assert torch.equal(rule(agree, {}), torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
    conflict = torch.tensor([[1.0, 1.0, 2.0], [9.0, -5.0, 3.0]])
    assert torch.equal(rule(conflict, {}), torch.tensor([[1.0, 0.8], [1.0, 0.8]]))
    a, b = pairs()
    g = step(rule, a, b).flatten()
    assert_close(g, prograd(a.flatten(), b.flatten(), 1.0), "formula", torch.float64)


# ---- against torchjd: its aggregators take the rows [a; b] and give the same step, not a multiple of it


def test_pcgrad_agrees_with_torchjd():
    from torchjd.aggregation import PCGrad

    a, b = pairs(12)
    for x, y, g in zip(a, b, step(rules.PCGrad(), a, b), strict=True):
        assert_close(g, PCGrad()(torch.stack([x, y])), "formula", torch.float64, scale=x.abs())


@pytest.mark.parametrize("c", [0.0, 0.2, 0.5, 0.9])
def test_cagrad_agrees_with_torchjd(c):
    from torchjd.aggregation import CAGrad

    a, b = pairs(12)
    for x, y, g in zip(a, b, step(rules.CAGrad(c), a, b), strict=True):
        # its interior-point solver stops at about 1e-8 of the objective, which is quadratic around the minimum
        assert relative_error(g, CAGrad(c, norm_eps=0.0)(torch.stack([x, y])), scale=x.abs() + y.abs()) < 2e-4


def test_gradvac_agrees_with_torchjd():
    """Over several steps with a target that moves, one aggregator for each unit."""
    from torchjd.aggregation import GradVac

    state = {}
    a, b = pairs(12)
    theirs = [GradVac(beta=0.4, eps=0.0) for _ in range(len(a))]
    for i in range(6):
        a, b = a.roll(i, 1), (b + 0.3 * a).roll(i + 1, 1)  # now they agree, now they do not
        ours = step(rules.GradVac(0.4), a, b, state)
        for x, y, g, aggregator in zip(a, b, ours, theirs, strict=True):
            assert_close(g, aggregator(torch.stack([x, y])), "formula", torch.float64, scale=x.abs() + y.abs())


# ---- rules that change the gradients first


def test_bloop():
    """d = a + λ (b - ⟨b,m⟩/‖m‖² m) with m the average of a, over all parameters; two steps."""
    g = torch.Generator().manual_seed(3)
    shapes = [(3, 4), (5,), ()]
    rule = rules.Bloop(decay=0.7, lambda_=0.2)
    states = [{} for _ in shapes]
    m = None
    for _ in range(2):
        a, b = ([torch.randn(s, generator=g, dtype=torch.float64) for s in shapes] for _ in range(2))
        kept = copy.deepcopy((a, b))
        task, general = rule.prepare(a, b, states, "global")
        assert all(torch.equal(x, y) for x, y in zip([*a, *b], [*kept[0], *kept[1]], strict=True))
        coefficients = rule(reference.gram(task, general, "global"), {})
        actual = torch.cat(
            [reference.combine(x, y, coefficients).flatten() for x, y in zip(task, general, strict=True)]
        )
        x, y = (torch.cat([t.flatten() for t in tensors]) for tensors in (a, b))
        m = x if m is None else 0.7 * m + 0.3 * x
        assert_close(actual, x + 0.2 * (y - (y @ m) / (m @ m) * m), "formula", torch.float64)
        assert_close(torch.cat([s["task_average"].flatten() for s in states]), m, "formula", torch.float64)


def test_bloop_keeps_its_average_clean():
    """A gradient that overflowed must not stay in the average for ever, nor begin it."""
    rule, state = rules.Bloop(decay=0.5), {}
    bad, b = torch.tensor([1.0, math.inf]), torch.ones(2)
    _, (general,) = rule.prepare([bad], [b], [state], "tensor")
    assert torch.equal(general, b)
    rule.prepare([torch.tensor([4.0, 2.0])], [b], [state], "tensor")
    rule.prepare([bad], [b], [state], "tensor")
    assert torch.equal(state["task_average"], torch.tensor([4.0, 2.0]))
    rule.prepare([torch.tensor([2.0, 4.0])], [bad], [state], "tensor")  # nor one beside a b that overflowed
    assert torch.equal(state["task_average"], torch.tensor([4.0, 2.0]))


SUBPT = np.load(GOLDEN / "subpt_projection.npz")


def test_subspace_is_the_authors_projection():
    """One parameter, and the same gradient as two parameters that are projected together."""
    rule = rules.Subspace(torch.from_numpy(SUBPT["U"]))
    gradient = torch.from_numpy(SUBPT["grad"])
    (g,), _ = rule.prepare([gradient], [gradient], [{}], "tensor")
    assert_close(g, SUBPT["projected_one"], "golden projection", torch.float64)
    parts = [gradient[:1], gradient[1:]]
    split, _ = rule.prepare(parts, parts, [{}, {}], "tensor")
    assert_close(torch.cat(list(split)), SUBPT["projected_split"], "golden projection", torch.float64)


def test_subspace_of_trajectory_is_the_authors_basis():
    """Row signs are arbitrary: the projectors are compared."""
    u = rules.Subspace.of_trajectory(torch.from_numpy(SUBPT["stack"]), len(SUBPT["U"])).basis
    assert_close(u.mT @ u, SUBPT["U"].T @ SUBPT["U"], "golden projection", torch.float64)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_subspace_computes_in_float32(dtype):
    basis = torch.linalg.qr(torch.randn(50, 3, generator=torch.Generator().manual_seed(0))).Q.mT
    a = torch.randn(50, generator=torch.Generator().manual_seed(1)).to(dtype)
    (g,), _ = rules.Subspace(basis).prepare([a], [a], [{}], "tensor")
    assert g.dtype == dtype
    assert_close(g, basis.double().mT @ (basis.double() @ a.double()), "formula", dtype)


# ---- what all rules keep to

ALL = [
    rules.ProGrad(),
    rules.AGEM(),
    rules.PCGrad(),
    rules.GradVac(0.1),
    rules.CAGrad(),
    rules.Bloop(),
    rules.Subspace(torch.eye(2)),
]


@pytest.mark.parametrize("rule", ALL, ids=lambda rule: type(rule).__name__)
@pytest.mark.parametrize("b", [[0.0, 0.0], [1e-30, -1e-30], [math.nan, 1.0], [math.inf, 1.0], [-math.inf, 0.0]])
def test_unusable_general_gradient(rule, b):
    """Zero, vanishing in float32, or not finite: the plain task gradient, and a state that stays as it was."""
    a, b = torch.tensor([1.0, -2.0]), torch.tensor(b)
    state = {"target_cosine": torch.tensor([0.25])}
    assert rule(reference.gram([a], [b]), state).tolist() == [[1.0, 0.0]]
    assert state["target_cosine"].tolist() == [0.25]


@pytest.mark.parametrize("rule", ALL, ids=lambda rule: type(rule).__name__)
def test_special_pairs_are_finite(rule):
    """Equal, opposite, parallel, orthogonal gradients, a zero task gradient, no units."""
    b = torch.tensor([3.0, -4.0])
    for a in (b, -b, 2 * b, -0.5 * b, torch.tensor([4.0, 3.0]), torch.zeros(2)):
        for state in ({}, {"target_cosine": torch.ones(1)}):  # a target that cannot be reached by turning
            assert rule(reference.gram([a], [b]), state).isfinite().all()
    assert rule(torch.zeros(0, 3), {}).shape == (0, 2)


def test_cagrad_of_opposite_gradients_stands_still():
    a = torch.tensor([3.0, -4.0])
    assert torch.equal(step(rules.CAGrad(), a.unsqueeze(0), -a.unsqueeze(0)), torch.zeros(1, 2))


@pytest.mark.parametrize("rule", ALL, ids=lambda rule: type(rule).__name__)
def test_nothing_is_read_back(rule):
    """On fake tensors, which have no values to read."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(allow_non_fake_inputs=True):
        a, b, state = torch.empty(2), torch.empty(2), {}
        for _ in range(2):
            task, general = rule.prepare([a], [b], [state], "tensor")
            rule(torch.empty(3, 3), {"target_cosine": torch.empty(3)})
    assert [t.shape for t in (*task, *general)] == [(2,), (2,)]


def test_rules_are_values():
    assert rules.GradVac(0.2) == rules.GradVac(0.2) != rules.GradVac(0.3)
    assert hash(rules.CAGrad()) == hash(rules.CAGrad(0.5))
    with pytest.raises(AttributeError):
        rules.ProGrad().lambda_ = 2.0
    for rule in ALL:
        assert type(copy.deepcopy(rule)) is type(rule)


BAD = [
    (lambda: rules.ProGrad(-0.1), ValueError, "lambda_: expected a finite number of at least 0, got -0.1"),
    (lambda: rules.ProGrad(math.nan), ValueError, "lambda_: expected"),
    (lambda: rules.ProGrad("1"), TypeError, "lambda_: expected a number, got str"),
    (lambda: rules.GradVac(1.5), ValueError, r"beta: expected 0 \.\.\. 1, got 1.5"),
    (lambda: rules.CAGrad(math.inf), ValueError, "c: expected a finite number"),
    (lambda: rules.Bloop(decay=1.0), ValueError, "decay: expected 0 ≤ x < 1, got 1.0"),
    (lambda: rules.Subspace(torch.ones(4)), ValueError, r"basis: expected a float matrix \(r, n\)"),
    (lambda: rules.Subspace(torch.ones(2, 4)), ValueError, "basis: expected orthonormal rows"),
    (lambda: rules.Subspace.of_trajectory(torch.zeros(5, 9), 5), ValueError, r"rank: expected 1 \.\.\. 4 for 5 points"),
    (
        lambda: rules.Subspace(torch.eye(3)).prepare([torch.ones(4)], [torch.ones(4)], [{}], "tensor"),
        ValueError,
        "basis: expected 4 columns",
    ),
]


@pytest.mark.parametrize(("make", "error", "message"), BAD)
def test_bad_input(make, error, message):
    with pytest.raises(error, match=message):
        make()
