"""Sums of up to ten million float32 numbers whose roundings all go one way, on every backend, against float64."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from prograd_fast import functional
from tests.ops.support import BACKENDS, running_on

# relative; the reference's are torch's own pairwise sums. A plain float32 sum of 16,384 numbers is off by 3e-5
LARGEST = {"reference": 1e-6, "cpu": 5e-7}


def constant(n: int) -> Tensor:
    """Each rounding of the sum goes in the same direction for a long time."""
    return torch.full((n,), 0.7)


def slow(n: int) -> Tensor:
    """From 0.7 to 1.3."""
    return torch.linspace(0.7, 1.3, n)


def relative(got: Tensor, wanted: Tensor) -> float:
    return float(((got.double() - wanted) / wanted).abs().max())


# less than a run; several; around a chunk; many chunks
@pytest.mark.parametrize("n", [1_000, 16_384, 50_001, 1_000_000, 10_000_000])
@pytest.mark.parametrize("inputs", [constant, slow])
@pytest.mark.parametrize("backend", BACKENDS)
def test_sums(backend: str, inputs: Callable[[int], Tensor], n: int) -> None:
    a, b = inputs(n), -1.3 * inputs(n)
    x, y, nothing = a.double(), b.double(), torch.zeros(n)
    with running_on(backend):
        got = functional.gram([a], [b])[0]
        squares = functional.squared_error(a, nothing, "sum")
        # below omega1 Soft Wing is |x|: beyond it the rounding of a logarithm is larger than that of a sum
        wing = functional.soft_wing(a[None], nothing[None])
    assert relative(got, torch.stack((x @ x, x @ y, y @ y))) < LARGEST[backend]
    assert relative(squares, x @ x) < LARGEST[backend]
    assert relative(wing, x.sum()) < LARGEST[backend]


@pytest.mark.parametrize("classes", [1_000, 100_000])
@pytest.mark.parametrize("backend", BACKENDS)
def test_softmax_over_equal_logits(backend: str, classes: int) -> None:
    logits, labels = torch.full((2, 1, classes), -0.3), torch.tensor([1])
    with running_on(backend):
        _, cotangents = torch.ops.prograd_fast.sampled_cross_entropy(logits, labels, 2)
    share = torch.tensor(1 / (2 * classes), dtype=torch.float64)
    assert relative(cotangents[:, 0, 2:], share) < LARGEST[backend]
