"""squared_error and soft_wing on every backend against PyTorch, the formula and hand values."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import prograd_fast as pf
from prograd_fast import functional, reference
from tests.ops.support import BACKENDS, DTYPES, accumulation, normal, running_on, threads
from tests.tolerances import assert_close

LOSSES: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor]]] = {
    "squared_error": (functional.squared_error, F.mse_loss),
    "soft_wing": (functional.soft_wing, reference.soft_wing),
    "soft_wing, other settings": (
        lambda x, t: functional.soft_wing(x, t, 0.7, 3.0, 0.1),
        lambda x, t: reference.soft_wing(x, t, 0.7, 3.0, 0.1),
    ),
}


# one element; less than a vector; coordinates of landmarks; several chunks of partial sums and a rest
@pytest.mark.parametrize("shape", [(1,), (7,), (5, 68, 2), (3, 16385)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_parity(backend: str, loss: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    ours, theirs = LOSSES[loss]
    x, t = (4 * normal(*shape, seed=seed, dtype=torch.float64) for seed in (1, 2))
    x, t = x.to(dtype).requires_grad_(), t.to(dtype)
    with running_on(backend):
        value = ours(x, t)
        (gradient,) = torch.autograd.grad(value, x)
    assert value.dtype == accumulation(dtype)
    assert gradient.dtype == dtype
    wide = x.detach().double().requires_grad_()
    expected = theirs(wide, t.double())
    assert_close(value, expected, "formula", accumulation(dtype))
    assert_close(gradient, torch.autograd.grad(expected, wide)[0], "formula", dtype)


@pytest.mark.parametrize("backend", BACKENDS)
def test_soft_wing_by_hand(backend: str) -> None:
    """ω1 = 2, ω2 = 20, ε = 0.5: linear below 2, then 20 ln((0.5 + d) / 2.5) + 2; at 2 the curve's slope."""
    x = torch.tensor([[0.0, 1.0, -1.5, 2.0, -4.5]], dtype=torch.float64, requires_grad=True)
    with running_on(backend):
        loss = pf.losses.SoftWing()(x, torch.zeros_like(x).detach())
        (gradient,) = torch.autograd.grad(loss, x)
    assert loss.item() == pytest.approx(0 + 1 + 1.5 + 2 + 20 * math.log(2) + 2)
    assert gradient.tolist() == [pytest.approx([0, 1, -1, 8, -4])]


@pytest.mark.parametrize("backend", BACKENDS)
def test_reductions(backend: str) -> None:
    x, t = normal(6, 4, seed=1), normal(6, 4, seed=2)
    with running_on(backend):
        assert_close(functional.squared_error(x, t, "sum"), ((x - t) ** 2).sum(), "formula", torch.float64)
        one_by_one = torch.stack([functional.soft_wing(x[i : i + 1], t[i : i + 1]) for i in range(6)])
        assert_close(functional.soft_wing(x, t), one_by_one.mean(), "formula", torch.float64)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradcheck(backend: str) -> None:
    x, t = (4 * normal(3, 5, seed=1)).requires_grad_(), normal(3, 5, seed=2)
    assert ((x - t).abs() - 2).abs().min() > 1e-2  # away from the slope's jump
    with running_on(backend):
        for ours, _ in LOSSES.values():
            assert torch.autograd.gradcheck(lambda y, f=ours: 3 * f(y, t), x)


@pytest.mark.parametrize("loss", ["squared_error", "soft_wing"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_extreme_values(backend: str, loss: str) -> None:
    """Nothing overflows that fits; infinity and NaN come out as they went in, and only where they were."""
    ours, theirs = LOSSES[loss]
    x = torch.tensor([[1e18, -1e18, 1e-30, 0.0]], requires_grad=True)
    with running_on(backend):
        value = ours(x, torch.zeros(1, 4))
        assert_close(value, theirs(x.detach().double(), torch.zeros(1, 4).double()), "formula", torch.float32)
        assert torch.autograd.grad(value, x)[0].isfinite().all()
        for bad in (math.inf, -math.inf, math.nan):
            x = torch.tensor([[bad] + [1.0] * 20], requires_grad=True)
            value = ours(x, torch.zeros(1, 21))
            (gradient,) = torch.autograd.grad(value, x)
            assert not value.isfinite()
            assert bool(value.isnan()) == math.isnan(bad)
            assert gradient[0, 1:].isfinite().all()
            assert bool(gradient[0, 0].isnan()) == math.isnan(bad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_many_large_differences(backend: str, dtype: torch.dtype) -> None:
    """The sum of logarithms is that of a product, which would be beyond all numbers here."""
    x = (10 ** (30 * normal(1, 5000, dtype=torch.float64).sigmoid())).to(dtype)
    nothing = torch.zeros_like(x)
    with running_on(backend):
        value = functional.soft_wing(x, nothing)
    assert_close(value, reference.soft_wing(x.double(), nothing.double()), "formula", dtype)


@pytest.mark.parametrize("backend", BACKENDS)
def test_layouts_and_mixed_dtypes(backend: str) -> None:
    """Transposed, expanded, every other column, a float16 prediction of a float32 target: as contiguous copies."""
    x, t = normal(6, 4, dtype=torch.float32), normal(6, 4, seed=1, dtype=torch.float32)
    pairs = [
        (x.t().contiguous().t(), t),
        (x, t[:1].expand(6, 4)),
        (x.repeat_interleave(2, 1)[:, ::2], t),
        (x.half(), t),
    ]
    with running_on(backend):
        for a, b in pairs:
            value, cotangents = torch.ops.prograd_fast.difference_loss(a, b, True, 2.0, 20.0, 0.5, 1.0)
            copies = a.float().contiguous(), b.contiguous()
            same, expected = torch.ops.prograd_fast.difference_loss(*copies, True, 2.0, 20.0, 0.5, 1.0)
            assert value == same
            assert torch.equal(cotangents, expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing(backend: str) -> None:
    with running_on(backend):
        assert functional.squared_error(torch.zeros(0, 3), torch.zeros(0, 3)).isnan()  # as torch: the mean of nothing
        assert functional.squared_error(torch.zeros(0, 3), torch.zeros(0, 3), "sum") == 0
        assert functional.soft_wing(torch.zeros(0, 3), torch.zeros(0, 3)).isnan()


def test_any_number_of_threads_gives_the_same_bits() -> None:
    x, t = normal(300_001, dtype=torch.float32), normal(300_001, seed=1, dtype=torch.float32)
    results = []
    for count in (1, 2, 1, 3):
        with threads(count):
            results.append(torch.ops.prograd_fast.difference_loss(x, t, True, 2.0, 20.0, 0.5, 1.0))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_vmap(backend: str) -> None:
    x, t = normal(3, 4, 5, dtype=torch.float32), normal(4, 5, seed=1, dtype=torch.float32)
    with running_on(backend):
        assert torch.vmap(lambda y: functional.soft_wing(y, t))(x)[2] == functional.soft_wing(x[2], t)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"target": torch.zeros(3, 5)},
            ValueError,
            "target: expected the prediction's shape \\(3, 4\\)",
        ),
        ({"target": torch.zeros(4)}, ValueError, "Nothing is broadcast"),
        ({"target": torch.zeros(3, 4, requires_grad=True)}, ValueError, "target: expected a tensor that is fixed"),
        ({"target": torch.zeros(3, 4).long()}, TypeError, "target: expected a floating-point"),
        ({"target": [0.0]}, TypeError, "target: expected a tensor, got list"),
        ({"prediction": torch.zeros(3, 4).long()}, TypeError, "prediction: expected a floating-point"),
        ({"target": torch.zeros(3, 4, device="meta")}, ValueError, "devices: expected one for all"),
    ],
)
@pytest.mark.parametrize("function", [functional.squared_error, functional.soft_wing])
def test_bad_arguments(
    function: Callable[..., Tensor], change: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        function(**({"prediction": torch.zeros(3, 4), "target": torch.zeros(3, 4)} | change))


@pytest.mark.parametrize("settings", [{"omega1": 0.0}, {"omega2": -1.0}, {"epsilon": math.nan}])
def test_bad_settings(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(settings))}: expected a number above 0"):
        pf.losses.SoftWing(**settings)


def test_bad_reduction_and_no_batch() -> None:
    with pytest.raises(ValueError, match="reduction: expected 'mean' or 'sum', got 'none'"):
        functional.squared_error(torch.zeros(3), torch.zeros(3), "none")
    with pytest.raises(ValueError, match=r"prediction: .* got a scalar"):
        functional.soft_wing(torch.zeros(()), torch.zeros(()))
