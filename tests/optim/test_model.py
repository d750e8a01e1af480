"""Guards the slow model itself: numbers worked out by hand, and the rules' formulas over Gram entries."""

import math
from random import Random

import pytest
import torch
from torch import Tensor

from prograd_fast import reference
from tests.optim import model
from tests.optim.side_by_side import RULES, SideBySide, eighths
from tests.tolerances import assert_close


def tensor(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def made(rule: model.ProGrad, lambda_: float = 1.0, floor: float = 0.0) -> tuple[Tensor, model.Model]:
    p = torch.nn.Parameter(tensor(0.0, 0.0))
    return p, model.Model(torch.optim.SGD([p], lr=1.0), rule, "tensor", floor, lambda_)


# a = (3, 0) and b = (-1, 1): ⟨a,b⟩ = -3, ‖a‖² = 9, ‖b‖² = 2
BY_HAND = [
    (model.ProGrad(), [(1.5, 1.5)]),
    (model.AGEM(), [(1.5, 1.5)]),
    (model.PCGrad(), [(1.5, 2.5)]),  # b's part across a is (0, 1)
    (model.CAGrad(0.0), [(1.0, 0.5)]),  # the mean
    # the average of a lies along a, and b across it is (0, 1)
    (model.Bloop(0.5, 0.5), [(3.0, 0.5), (3.0, 0.5)]),
    (model.Subspace(tensor(0.6, 0.8).unsqueeze(0)), [(1.08, 1.44)]),
]


@pytest.mark.parametrize(("rule", "steps"), BY_HAND, ids=lambda x: type(x).__name__)
def test_by_hand(rule: model.ProGrad, steps: list[tuple[float, float]]) -> None:
    p, m = made(rule)
    for expected in steps:
        p.grad = None
        m.backward({p: tensor(3.0, 0.0)}, {p: tensor(-1.0, 1.0)})
        assert_close(p.grad, tensor(*expected), "formula", torch.float64)


def test_gradvac_reaches_its_target() -> None:
    """Turned towards b, a has the cosine that they usually have; the same for b."""
    a, b = tensor(3.0, 0.0), tensor(-1.0, 2.0)
    rule = model.GradVac(0.5)
    unit = model.Unit(a, b, a, tensor(1.0), {"target": 0.25}, [])
    g = rule.step(unit)
    # with x = a + s b and y = b + t a of cosine 1/4 to b and to a; g = x + y
    cosine = lambda x, y: x @ y / x.norm() / y.norm()  # noqa: E731
    s, t = (solve(lambda w, u=u, v=v: cosine(u + w * v, v) - 0.25) for u, v in ((a, b), (b, a)))
    assert_close(g, (1 + t) * a + (1 + s) * b, "formula", torch.float64)
    assert math.isclose(unit.memory["target"], 0.125 - 0.5 / math.sqrt(5))


def solve(f) -> float:
    """The zero of a function that rises from 0 to 10."""
    low, high = 0.0, 10.0
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if f(middle) < 0 else (low, middle)
    return low


@pytest.mark.parametrize("rule", [name for name in RULES if name not in ("None", "Subspace")])
def test_formulas_over_gram_entries(rule: str) -> None:
    """The rules of the library, called by hand, on pairs of five numbers in general position."""
    ours, theirs = RULES[rule]
    assert ours
    random, state, states = Random(5), {}, [{}]
    p = torch.nn.Parameter(torch.zeros(5, dtype=torch.float64))
    m = model.Model(torch.optim.SGD([p], lr=1.0), theirs, "tensor", 0.0, 0.75)
    for _ in range(40):
        a, b = eighths((5,), random), eighths((5,), random)
        p.grad = None
        m.backward({p: a}, {p: b})
        task, general = ours.prepare([a], [b], states, "tensor")
        coefficients = ours(reference.gram(task, general, "tensor"), state)
        assert_close(p.grad, reference.combine(*task, *general, coefficients), "formula", torch.float64)


def test_cagrad_has_gained_most_where_least_is_gained() -> None:
    """No direction of the plane within the radius does better."""
    random, rule = Random(7), model.CAGrad(0.4)
    angles = torch.linspace(0, 2 * math.pi, 10001, dtype=torch.float64)
    for _ in range(20):
        a, b = eighths((2,), random), eighths((2,), random)
        mean = (a + b) / 2
        g = rule.step(model.Unit(a, b, a, tensor(1.0), {}, []))
        assert_close((g - mean).norm(), 0.4 * mean.norm(), "formula", torch.float64)
        others = mean + 0.4 * mean.norm() * torch.stack([angles.cos(), angles.sin()], dim=1)
        best = torch.minimum(others @ a, others @ b).max()
        assert torch.minimum(g @ a, g @ b) > best - 1e-6 * best.abs()


def test_floor_and_what_is_not_finite() -> None:
    """Below the floor, and where b is not finite, a is left alone; under a scaler the second shows in `.grad`."""
    p, m = made(model.ProGrad(), floor=0.125)
    a = tensor(8.0, 0.0)
    m.backward({p: a}, {p: tensor(-0.5, 0.0)})
    m.backward({p: a}, {p: tensor(-2.0, 0.0)})
    m.backward({p: a}, {p: tensor(-math.inf, 0.0)})
    assert p.grad.tolist() == [16.0, 0.0]
    assert m.conflict() == [model.Count(cosine=m.conflict()[0].cosine, steps=3, conflicts=1, non_finite=1, absent=1)]
    m.backward({p: a}, {p: tensor(-math.inf, 0.0)}, scale=4.0)
    assert p.grad.isnan().all()


def test_it_refuses_what_roundings_decide() -> None:
    """Between 1e-17 and 0 there is no right answer."""
    p, m = made(model.ProGrad())
    for a in (tensor(1e-17, 0.0), tensor(1e-12, 1.0)):
        with pytest.raises(model.AmbiguousError):
            m.backward({p: a}, {p: tensor(1.0, 0.0)})


def test_a_difference_is_seen() -> None:
    """What one side does alone fails the comparison."""
    s = SideBySide("ProGradSGD", "None", "tensor")
    s.check()
    with torch.no_grad():
        s.params[1][0] += 1e-9
    with pytest.raises(AssertionError, match="parameter 1"):
        s.check()
