"""normalised_focal_loss on every backend: the definition, closed-form gradients, ignored pixels, and wrong calls."""

import math
from functools import partial

import pytest
import torch
from torch import Tensor

from prograd_fast import functional, reference
from tests.ops.support import BACKENDS, DTYPES, accumulation, assert_same_bits, normal, running_on
from tests.tolerances import assert_close

TINY = 1e-30  # ε, which the definition below does not have


def drawn(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Logits of all sizes, and labels of which some are ignored; no pixel counts in the last picture."""
    labels = torch.randint(-1, 2, (4, 1, 6, 7), generator=torch.Generator().manual_seed(3))
    labels[3] = -1
    return (3 * normal(4, 1, 6, 7)).to(dtype), labels


def by_hand(z: Tensor, y: Tensor, alpha: float, gamma: float, max_mult: float) -> Tensor:
    """Picture by picture, only pixels that count."""
    losses = []
    for logits, labels in zip(z, y, strict=True):
        logits, labels = logits[labels >= 0], labels[labels >= 0]
        p = torch.where(labels == 1, logits.sigmoid(), (-logits).sigmoid())
        beta = (1 - p) ** gamma
        beta = beta * (len(beta) / beta.sum()).detach() if len(beta) else beta
        beta = beta.clamp(max=max_mult) if max_mult > 0 else beta
        each = -(alpha * labels.double() + (1 - alpha) * (1 - labels.double())) * beta * p.log()
        losses.append(each.mean() if len(each) else each.sum())
    return torch.stack(losses)


@pytest.mark.parametrize("settings", [(0.5, 2.0, -1.0), (0.25, 1.0, 1.5), (0.9, 0.5, -1.0)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_parity(backend: str, dtype: torch.dtype, settings: tuple[float, ...]) -> None:
    z, labels = drawn(dtype)
    z.requires_grad_()
    wide, factors = z.detach().double().requires_grad_(), torch.tensor([1.0, -2.0, 3.0, 4.0])
    with running_on(backend):
        losses = functional.normalised_focal_loss(z, labels, *settings, eps=TINY)
        (gradient,) = torch.autograd.grad(losses, z, factors.to(losses.dtype))
    expected = by_hand(wide, labels, *settings)
    assert losses.dtype == accumulation(dtype)
    assert_close(losses, expected, "formula", accumulation(dtype))
    assert_close(gradient, torch.autograd.grad(expected, wide, factors.double())[0], "formula", dtype)
    assert losses[3] == 0
    assert not gradient[labels == -1].any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_second_derivatives(backend: str) -> None:
    """Through the formula; m is fixed there, too, so finite differences are not the judge."""
    z, labels = drawn()
    found = []
    with running_on(backend):
        for loss in (partial(functional.normalised_focal_loss, eps=TINY), by_hand):
            x = z.clone().requires_grad_()
            (a,) = torch.autograd.grad(loss(x, labels, 0.5, 2.0, -1.0).sum(), x, create_graph=True)
            found.append(torch.autograd.grad(a.square().sum(), x)[0])
    assert_close(found[0], found[1], "formula", torch.float64)


@pytest.mark.parametrize("backend", BACKENDS)
def test_sure_pixels(backend: str) -> None:
    """Float32 has no 1 - p of a sure pixel; the weights have it all the same, and nothing is infinite."""
    z = torch.tensor([[30.0, 20.0, -25.0, 90.0, -200.0]])
    labels = torch.tensor([[1, 1, 0, 1, 1]])
    with running_on(backend):
        for y in (labels, 1 - labels):
            x = z.clone().requires_grad_()
            loss = functional.normalised_focal_loss(x, y)
            (gradient,) = torch.autograd.grad(loss.sum(), x)
            wide = z.double().requires_grad_()
            expected = functional.normalised_focal_loss(wide, y)
            assert_close(loss, expected, "formula", torch.float32)
            assert_close(gradient, torch.autograd.grad(expected.sum(), wide)[0], "formula", torch.float32)


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_but_sure_pixels(backend: str) -> None:
    """Their weights are below the smallest float; their factor m, up to 1 / ε, brings them back."""
    z = torch.tensor([[25.0, 24.0, -22.0, 30.0, 23.0], [30.0, 31.0, -29.0, 30.0, 32.0]])
    labels = torch.tensor([1, 1, 0, 1, 1])
    with running_on(backend):
        for gamma in (1.0, 2.0):
            x, wide = z.clone().requires_grad_(), z.double().requires_grad_()
            found = [functional.normalised_focal_loss(y, labels.expand(2, 5), 0.5, gamma) for y in (x, wide)]
            gradients = [torch.autograd.grad(loss.sum(), y)[0] for loss, y in zip(found, (x, wide), strict=True)]
            for i in range(2):
                assert_close(found[0][i], found[1][i], "formula", torch.float32)
                assert_close(gradients[0][i], gradients[1][i], "formula", torch.float32)


@pytest.mark.parametrize("max_mult", [-1.0, 2.0])
@pytest.mark.parametrize("eps", [1e-30, 1e-12, 1e-8, 1e-6, 0.3], ids=str)  # p + eps is p: of most pixels ... of none
@pytest.mark.parametrize("backend", BACKENDS)
def test_digits_of_every_pixel(backend: str, eps: float, max_mult: float) -> None:
    """Float32's in each pixel by itself, however likely; but for q - eps, where nearly nothing is left of either."""
    z = torch.linspace(-60, 60, 4096)[None]
    x, wide, labels = z.clone().requires_grad_(), z.double().requires_grad_(), torch.ones(1, 4096).long()
    with running_on(backend):
        losses = [functional.normalised_focal_loss(y, labels, max_mult=max_mult, eps=eps) for y in (x, wide)]
        got, expected = (torch.autograd.grad(loss.sum(), y)[0] for loss, y in zip(losses, (x, wide), strict=True))
    assert_close(losses[0], losses[1], "formula", torch.float32)
    known = (((-z.double()).sigmoid() / eps - 1).abs() > 0.5) & (expected.abs() > 1e-35)
    assert known.sum() > 1000
    quotients = (got / expected)[known]
    assert_close(quotients, torch.ones_like(quotients), "each element", torch.float32)


@pytest.mark.parametrize("max_mult", [-1.0, 1.5])
@pytest.mark.parametrize("backend", BACKENDS)
def test_many_pixels(backend: str, max_mult: float) -> None:
    """Several runs of a register and a rest; infinite logits; NaN stays in its picture, and out where ignored."""
    z, labels = (
        4 * normal(4, 1037, dtype=torch.float32),
        (normal(4, 1037, seed=1) > 0).long() - (normal(4, 1037) > 1).long(),
    )
    z[1, :4], labels[1, :4] = torch.tensor([math.inf, -math.inf, math.inf, -math.inf]), torch.tensor([1, 1, 0, 0])
    z[2, labels[2] == -1] = math.nan
    z[3, 1030], labels[3, 1030] = math.nan, 1
    z.requires_grad_()
    wide = z.detach().double().requires_grad_()
    with running_on(backend):
        losses, expected = (functional.normalised_focal_loss(x, labels, max_mult=max_mult) for x in (z, wide))
        gradients = [torch.autograd.grad(x.sum(), y)[0] for x, y in ((losses, z), (expected, wide))]
        known = z[:3].detach(), labels[:3]  # NaN equals nothing
        assert_same_bits(lambda: torch.ops.prograd_fast.normalised_focal_loss(*known, 0.5, 2.0, max_mult, 1e-12))
    for i in range(3):
        assert_close(losses[i], expected[i], "formula", torch.float32)
        assert_close(gradients[0][i], gradients[1][i], "formula", torch.float32)
    assert losses[3].isnan()
    assert gradients[0][3, labels[3] != -1].isnan().all()


@pytest.mark.parametrize("label", [2, -2, 255])
@pytest.mark.parametrize("backend", BACKENDS)
def test_unknown_labels(backend: str, label: int) -> None:
    labels = torch.tensor([[0, 1, -1], [0, label, 1]])
    for max_mult in (-1.0, 1.5):
        with running_on(backend), pytest.raises(ValueError, match=f"labels: expected 1, 0 or -1, got {label}. Use 1"):
            functional.normalised_focal_loss(torch.zeros(2, 3), labels, max_mult=max_mult)
    loss = reference.normalised_focal_loss(torch.zeros(2, 3), labels)
    assert loss.isnan().tolist() == [False, True]


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"logits": torch.zeros(2, 3).long()}, TypeError, "logits: expected a floating-point tensor"),
        ({"labels": torch.zeros(2, 3)}, TypeError, "labels: expected integers 1, 0 and -1, got torch.float32"),
        ({"labels": torch.zeros(2, 4).long()}, ValueError, "labels: expected the logits' shape"),
        ({"gamma": 0.0}, ValueError, "gamma: expected a number above 0"),
        ({"eps": 0.0}, ValueError, "eps: expected a number above 0"),
    ],
)
def test_wrong_calls(settings: dict[str, object], error: type[Exception], message: str) -> None:
    call = {"logits": torch.zeros(2, 3), "labels": torch.zeros(2, 3).long(), **settings}
    with pytest.raises(error, match=message):
        functional.normalised_focal_loss(**call)  # type: ignore[arg-type]
