"""Guards the 1 that the backward of a loss starts with: known to the operator, and never another number."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

import prograd_fast as pf
from prograd_fast.functional import dual_loss
from prograd_fast.ops import losses
from prograd_fast.ops.registry import SHORTCUTS
from prograd_fast.optim.one_backward import gradients_of_both
from tests.ops.support import normal
from tests.tolerances import assert_close

LABELS = torch.tensor([1, 0, 2])


@pytest.fixture(autouse=True)
def _by_the_dispatcher(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As on a GPU: on a CPU a shortcut in C++ has a backward of its own."""
    monkeypatch.delitem(SHORTCUTS, "dual_loss", raising=False)
    yield
    losses._ones.clear()


def both(param: Parameter) -> tuple[Tensor, Tensor]:
    """The losses of logits that are the parameter."""
    return dual_loss(param, normal(3, 4, seed=1, dtype=param.dtype), LABELS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("weight", [1.0, 3.0])
@pytest.mark.parametrize("kept", [False, True])
def test_gradients_are_those_of_autograd(dtype: torch.dtype, weight: float, kept: bool) -> None:
    param = Parameter(normal(3, 4, dtype=dtype))
    wanted = [torch.autograd.grad(weight * both(param)[k], param)[0] for k in range(2)]
    scaled = (loss if weight == 1 else weight * loss for loss in both(param))
    ours = gradients_of_both(*scaled, [param], retain_graph=kept, create_graph=False)
    for own, expected in zip(ours, wanted, strict=True):
        assert own is not None
        assert own[0] is not None
        assert torch.equal(own[0], expected)


def test_the_product_with_one_is_left_out() -> None:
    param = Parameter(normal(3, 4, dtype=torch.float32))
    task, general = both(param)
    first = losses.first_gradient(task)
    assert first is not None
    assert first is losses.first_gradient(general)
    assert losses.first_gradient(2 * task) is None  # another node takes it, and may hand it on
    a, b = (torch.autograd.grad(loss, param, first, retain_graph=True)[0] for loss in (task, general))
    assert a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()  # of the operator's cotangents


def test_a_number_that_somebody_wrote_over_is_not_used_again() -> None:
    param = Parameter(normal(3, 4, dtype=torch.float32))
    task, _ = both(param)
    first = losses.first_gradient(task)
    assert first is not None
    first.mul_(5)
    (ours,) = torch.autograd.grad(task, param, first, retain_graph=True)
    assert losses.first_gradient(task).item() == 1  # type: ignore[union-attr]
    (wanted,) = torch.autograd.grad(task, param)
    assert torch.equal(ours, 5 * wanted)


def test_what_a_hook_writes_counts_and_is_gone_afterwards() -> None:
    """Also by ways that PyTorch is not told of."""
    param = Parameter(normal(3, 4, dtype=torch.float32))
    wanted = [torch.autograd.grad(both(param)[k], param)[0] for k in range(2)]
    for factor in (3.0, 1.0):

        def hook(gradient: Tensor | None, factor: float = factor) -> None:
            if gradient is not None:  # as it is in the backward of the other loss
                gradient.data.mul_(factor)

        task, general = both(param)
        task.register_hook(hook)
        a, b = gradients_of_both(task, general, [param], retain_graph=False, create_graph=False)
        assert b is not None
        assert a[0] is not None
        assert b[0] is not None
        assert_close(a[0], factor * wanted[0], "formula", torch.float32)
        assert torch.equal(b[0], wanted[1])


def test_a_graph_that_is_kept_outlives_changes_of_its_gradients() -> None:
    param = Parameter(normal(3, 4, dtype=torch.float32))
    optimizer = pf.ProGradSGD([param], lr=0.1)
    task, general = both(param)
    optimizer.backward(task, general, retain_graph=True)
    assert param.grad is not None
    before = param.grad.clone()
    param.grad.zero_()
    optimizer.zero_grad(set_to_none=True)
    optimizer.backward(task, general)
    assert torch.equal(param.grad, before)
