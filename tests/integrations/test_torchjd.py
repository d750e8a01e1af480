"""torchjd with `ProGradAggregator` is this library's projection with one test over all tensors."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torchjd.aggregation import PCGrad
from torchjd.autogram import Engine
from torchjd.autojac import backward, jac_to_grad

import prograd_fast as pf
from prograd_fast.integrations.torchjd import ProGradAggregator, ProGradWeighting
from tests.integrations.support import batches, both, check, numbers, student
from tests.tolerances import assert_close

DATA = batches(8)


@pytest.mark.parametrize("lambda_", [0.0, 0.8, 1.0, 1.5])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_it_is_our_operator(dtype: torch.dtype, lambda_: float) -> None:
    generator = torch.Generator().manual_seed(0)
    for general_share in (-1.0, -0.1, 1.0):  # conflict, little conflict, none
        a = torch.randn(50, generator=generator, dtype=dtype)
        b = torch.randn(50, generator=generator, dtype=dtype) + general_share * a
        (expected,) = pf.functional.project([a], [b], lambda_)
        assert_close(ProGradAggregator(lambda_)(torch.stack([a, b])), expected, "formula", dtype)


@pytest.mark.parametrize("b", [0.0, torch.nan, torch.inf])
def test_a_general_gradient_that_is_none(b: float) -> None:
    weights = ProGradWeighting()(torch.tensor([[2.0, -b], [-b, b]]))
    assert weights.tolist() == [1.0, 0.0]


def autojac(model: Any, losses: Any, lambda_: float) -> None:
    backward(losses)
    jac_to_grad(model.parameters(), ProGradAggregator(lambda_))


def autojac_by_gramian(model: Any, losses: Any, lambda_: float) -> None:
    backward(losses)
    jac_to_grad(model.parameters(), ProGradAggregator(lambda_), optimize_gramian_computation=True)


def autogram(model: Any, losses: Any, lambda_: float) -> None:
    both_losses = torch.stack(losses)
    both_losses.backward(ProGradWeighting(lambda_)(model.engine.compute_gramian(both_losses)))


def train(way: Callable[[Any, Any, float], None], lambda_: float) -> Tensor:
    model = student()
    if way is autogram:
        object.__setattr__(model, "engine", Engine(*model, batch_dim=None))
    opt = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for x, labels in DATA:
        opt.zero_grad()
        way(model, list(both(model(x), x, labels)), lambda_)
        opt.step()
    return numbers(model)


@pytest.mark.parametrize("way", [autojac, autojac_by_gramian, autogram])
def test_a_training_loop(way: Callable[[Any, Any, float], None]) -> None:
    def trained(make: Any) -> Tensor:
        return train(way, make([torch.nn.Parameter(torch.zeros(1))]).lambda_)

    def make(params: Any, **options: Any) -> Any:
        return pf.ProGradSGD(params, lr=0.1, momentum=0.9, scope="global", **options)

    check(trained, make, DATA)


@pytest.mark.parametrize("rows", [1, 3])
def test_other_numbers_of_losses_are_refused(rows: int) -> None:
    with pytest.raises(ValueError, match="gramian: expected that of two losses"):
        ProGradAggregator()(torch.ones(rows, 4))
    assert PCGrad()(torch.ones(rows, 4)).shape == (4,)  # torchjd itself takes them


def test_a_negative_lambda_is_refused() -> None:
    with pytest.raises(ValueError, match="lambda_"):
        ProGradAggregator(-1.0)
