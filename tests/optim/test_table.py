"""Guards `.grad` as the only thing that is pending, snapshots of the counts, closures, and parameters of odd kinds."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import prograd_fast as pf
from prograd_fast.ops.common import SCOPES
from tests.optim.kinds import (
    KINDS,
    OPTIMIZERS,
    RATE_ONE,
    WAYS,
    Twin,
    agreement_of,
    conflict_of,
    losses,
    point,
    refused,
    tensors,
)
from tests.slow import slow_but_for
from tests.tolerances import assert_close

# ---- row 6: .grad is changed by others between backward and step


def mask_row(params: list[Any]) -> None:
    params[0].grad[1] = 0


def mask_by_product(params: list[Any]) -> None:
    for p in params:
        p.grad.mul_(torch.arange(len(p), dtype=p.dtype).view(-1, *[1] * (p.dim() - 1)) % 2)


def clip_norm(params: list[Any]) -> None:
    torch.nn.utils.clip_grad_norm_(params, 0.5)


def clip_value(params: list[Any]) -> None:
    torch.nn.utils.clip_grad_value_(params, 0.3)


def make_finite(params: list[Any]) -> None:
    for p in params:
        p.grad[0] = torch.nan
        torch.nan_to_num_(p.grad, nan=0.25)


def foreach(params: list[Any]) -> None:
    torch._foreach_mul_([p.grad for p in params], 0.5)
    torch._foreach_add_([p.grad for p in params], 0.1)


def new_tensor(params: list[Any]) -> None:
    for p in params:
        p.grad = p.grad * 2 - 0.1


def through_data(params: list[Any]) -> None:
    for p in params:
        p.grad.data = p.grad.data.sign()


def forgotten(params: list[Any]) -> None:
    params[1].grad = None


def plain_backward(params: list[Any]) -> None:
    sum((p**2).sum() + p.sum() for p in params).backward()


EDITS = (mask_row, mask_by_product, clip_norm, clip_value, make_finite, foreach, new_tensor, through_data, forgotten)


@pytest.mark.parametrize("scope", slow_but_for(["tensor"], SCOPES))
@pytest.mark.parametrize("edit", [*EDITS, plain_backward], ids=lambda edit: edit.__name__)
@pytest.mark.parametrize("kind", KINDS)
def test_an_edited_gradient_is_what_is_stepped_on(kind: str, edit: Callable[[list[Any]], None], scope: Any) -> None:
    """As every framework edits it: torch.optim on the projected gradient with the same edit."""
    params = tensors()
    opt, twin = OPTIMIZERS[kind](params, lambda_=0.8, scope=scope), Twin(kind, params, 0.8, scope)
    for step in range(3):
        opt.zero_grad()
        opt.backward(*losses(params, step))
        edit(params)
        opt.step()
        twin.opt.zero_grad()
        twin.backward(step)
        edit(twin.params)
        twin.opt.step()
        twin.check(params)


@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit.__name__)
@pytest.mark.parametrize("kind", KINDS)
def test_an_edit_between_two_backwards(kind: str, edit: Callable[[list[Any]], None]) -> None:
    """Backwards in a row add their own projections to whatever `.grad` is."""
    params = tensors()
    opt, twin = OPTIMIZERS[kind](params), Twin(kind, params)
    opt.backward(*losses(params, 0))
    twin.backward(0)
    edit(params)
    edit(twin.params)
    opt.backward(*losses(params, 1))
    twin.backward(1)
    opt.step()
    twin.opt.step()
    twin.check(params)


@pytest.mark.parametrize("kind", RATE_ONE)
def test_frozen_rows_stay_and_clipped_norms_hold(kind: str) -> None:
    """The row's own figures: a masked row moved by 0.44, and an update clipped to 1 had the norm 100."""
    p = nn.Parameter(torch.zeros(3, 2))
    opt = RATE_ONE[kind]([p])
    a, b = torch.tensor([[1.0, -2.0], [3.0, 1.0], [100.0, 0.0]]), torch.tensor([[0.5, 2.0], [-1.0, 1.0], [-3.0, 0.0]])
    opt.backward((p * a).sum(), (p * b).sum())
    p.grad[0] = 0  # type: ignore[index]
    torch.nn.utils.clip_grad_norm_(p, 1.0)
    opt.step()
    assert p[0].tolist() == [0, 0]
    assert float(p.detach().norm()) == pytest.approx(1.0)
    assert opt.conflict.conflicts.tolist() == [1]


# ---- row 7: a batch that is given up


def drop(p: Any) -> None:
    p.grad = None


def zero(p: Any) -> None:
    p.grad.zero_()


def replace(p: Any) -> None:
    p.grad = torch.zeros_like(p)


ZEROS: dict[str, Callable[[Any, nn.Module, Any], None]] = {
    "model.zero_grad(set_to_none=False)": lambda opt, model, p: model.zero_grad(set_to_none=False),
    "model.zero_grad()": lambda opt, model, p: model.zero_grad(),
    "opt.zero_grad(set_to_none=False)": lambda opt, model, p: opt.zero_grad(set_to_none=False),
    "opt.zero_grad()": lambda opt, model, p: opt.zero_grad(),
    "p.grad = None": lambda opt, model, p: drop(p),
    "p.grad.zero_()": lambda opt, model, p: zero(p),
    "p.grad = zeros": lambda opt, model, p: replace(p),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("how", ZEROS)
@pytest.mark.parametrize("kind", RATE_ONE)
def test_a_skipped_batch_leaves_nothing(kind: str, how: str, way: str) -> None:
    """The general gradient of the skipped batch was still there: [-1.15, 0.23] instead of [-1, 1]."""
    p = point()
    model, opt = nn.ParameterList([p]), RATE_ONE[kind]([p])
    opt.backward(p.sum(), -5 * p[1])
    ZEROS[how](opt, model, p)
    WAYS[way](opt, *agreement_of(p))
    assert p.tolist() == [-1, 1]
    ZEROS["opt.zero_grad()"](opt, model, p)
    (p[0] - p[1]).backward()  # a plain step is plain
    opt.step()
    assert p.tolist() == [-2, 2]


@pytest.mark.parametrize("how", ZEROS)
def test_zeroed_by_others_within_a_block(how: str) -> None:
    """Sums of a block are the optimizer's own: its zero_grad drops them, zeroing `.grad` does not touch them."""
    p = point()
    p.grad = torch.zeros(2)
    model, opt = nn.ParameterList([p]), pf.ProGradSGD([p], lr=1.0)
    with opt.accumulate():
        opt.backward(*conflict_of(p))
    ZEROS[how](opt, model, p)
    opt.backward(*agreement_of(p))
    opt.step()
    # kept: (2, -2) and (1, 1), which do not conflict either
    assert p.tolist() == ([-1, 1] if how.startswith("opt.") else [-2, 2])


# ---- row 12: a snapshot


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", KINDS)
def test_conflict_is_a_snapshot(kind: str, way: str) -> None:
    """It was the live log, so that the difference of two readings was 0; and nobody can count for the optimizer."""
    params = tensors()
    opt = OPTIMIZERS[kind](params)
    readings = [opt.conflict]
    for step in range(3):
        opt.zero_grad()
        WAYS[way](opt, *losses(params, step))
        readings.append(opt.conflict)
    assert [reading.steps.tolist() for reading in readings] == [[i, i] for i in range(4)]
    assert readings[0].cosine.isnan().all()
    assert not torch.equal(readings[1].cosine, readings[2].cosine)
    readings[3].steps.add_(5)
    readings[3].cosine.zero_()
    assert opt.conflict.steps.tolist() == [3, 3]
    assert opt.conflict.cosine.abs().min() > 0


def test_conflict_of_no_parameters() -> None:
    """torch.optim takes a group without parameters, and so does this."""
    for params in ([{"params": []}], [{"params": []}, {"params": [point().requires_grad_(False)]}]):
        opt = pf.ProGradSGD(params, lr=1.0)
        assert opt.conflict.steps.tolist() == [0] * (len(params) - 1)
        assert opt.conflict.rate.isnan().all()
    opt.param_groups.clear()
    assert opt.conflict.steps.numel() == 0


# ---- row 15: closures


def loss_and_outputs(opt: Any, p: Tensor) -> Any:
    outputs = p * 2
    return outputs.sum(), outputs


CLOSURES: dict[str, Callable[[Any, Tensor], Any]] = {
    "loss": lambda opt, p: p.sum(),
    "number": lambda opt, p: 0.5,
    "None": lambda opt, p: None,
    "(loss, outputs)": loss_and_outputs,
    "(loss, number)": lambda opt, p: (p.sum(), 0.5),
    "(loss, detached)": lambda opt, p: (p.sum(), p[0].detach()),
    "(loss, None)": lambda opt, p: (p.sum(), None),
    "(loss,)": lambda opt, p: (p.sum(),),
    "three losses": lambda opt, p: (p.sum(), p[0] * 1, p[1] * 1),
    "dictionary": lambda opt, p: {"task": p.sum(), "general": p[0] * 1},
    "two detached": lambda opt, p: (p[0].detach(), p[1].detach()),
}


@pytest.mark.parametrize("result", CLOSURES)
@pytest.mark.parametrize("kind", RATE_ONE)
def test_a_closure_as_of_torch(kind: str, result: str) -> None:
    """Whatever it returns, unless it is two losses: it has called backward, and its result is handed on."""
    p = point()
    opt = RATE_ONE[kind]([p])
    returned = []

    def closure() -> Any:
        opt.zero_grad()
        opt.backward(*conflict_of(p))
        returned.append(CLOSURES[result](opt, p))
        return returned[0]

    with torch.no_grad():
        assert opt.step(closure) is returned[0]
    assert p.tolist() == [-1, 0]


@pytest.mark.parametrize(
    "pair",
    [
        lambda p: conflict_of(p),
        lambda p: list(conflict_of(p)),
        lambda p: tuple(loss.view(1) for loss in conflict_of(p)),
        lambda p: (conflict_of(p)[0].view(1, 1), conflict_of(p)[1].double()),
    ],
    ids=["tuple", "list", "one element", "other shapes and dtypes"],
)
@pytest.mark.parametrize("kind", RATE_ONE)
def test_a_closure_of_two_losses(kind: str, pair: Callable[[Tensor], Any]) -> None:
    p = point()
    opt = RATE_ONE[kind]([p])
    returned = opt.step(lambda: pair(p))
    assert len(returned) == 2
    assert p.tolist() == [-1, 0]
    assert p.grad is None


# ---- row 15: parameters of other kinds beside a projected one


def test_a_sparse_gradient_is_refused_before_anything_moves() -> None:
    p, embedding = point(), nn.Embedding(5, 2, sparse=True)
    opt = pf.ProGradSGD([p, *embedding.parameters()], lr=1.0)

    def sparse() -> Tensor:
        return embedding(torch.tensor([1])).sum()

    for call in (opt.backward, opt.backward_and_update):
        for sparse_one in range(2):
            losses = [loss + sparse() if i == sparse_one else loss for i, loss in enumerate(conflict_of(p))]
            with refused(opt, TypeError, "dense|sparse"):
                call(*losses)
    (p.sum() + sparse()).backward()  # without a projection as torch.optim
    with pytest.warns(UserWarning, match="never got a general gradient"):
        opt.step()
    assert p.tolist() == [-1, -1]


def test_a_complex_gradient_is_refused_before_anything_moves() -> None:
    p, z = point(), nn.Parameter(torch.zeros(2, dtype=torch.complex64))
    opt = pf.ProGradAdamW([p, z], lr=1.0)
    for call in (opt.backward, opt.backward_and_update):
        task, general = conflict_of(p)
        with refused(opt, TypeError, "complex"):
            call(task + (1j * z).real.sum(), general)
    p.sum().backward()  # without a projection as torch.optim
    z.real.sum().backward()
    with pytest.warns(UserWarning, match="never got a general gradient"):
        opt.step()
    assert p[0] < 0
    assert z[0].real < 0


@pytest.mark.parametrize(
    "make",
    [
        lambda groups, **k: pf.ProGradAdamW(groups, **k),
        lambda groups, **k: pf.ProGradSGD(groups, lr=1.0, **k),
        lambda groups, **k: pf.ProGrad(torch.optim.SGD(groups, lr=1.0), **k),
    ],
)
def test_a_groups_lambda_beside_a_rule(make: Callable[..., Any]) -> None:
    """The rule has its own, so that the group's would be without effect."""
    with pytest.raises(ValueError, match="lambda_"):
        make([{"params": [point()], "lambda_": 0.5}], rule=pf.rules.PCGrad())
    opt = make([point()], rule=pf.rules.PCGrad())
    with pytest.raises(ValueError, match="lambda_"):
        opt.add_param_group({"params": [point()], "lambda_": 0.5})
    assert len(opt.param_groups) == 1
    p = point()
    opt = make([p], rule=pf.rules.PCGrad())
    opt.param_groups[0]["lambda_"] = 0.5
    with refused(opt, ValueError, "lambda_"):
        opt.backward(*conflict_of(p))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_the_same_parameter_twice(kind: str, way: str) -> None:
    """torch warns of it in one group and refuses it in two; the gradient is added once, the update is torch's."""
    p, q = point(), point()
    with pytest.raises(ValueError, match="more than one parameter group"):
        OPTIMIZERS[kind]([{"params": [p]}, {"params": [p]}])
    with pytest.warns(UserWarning, match="duplicate parameters"):
        opt = OPTIMIZERS[kind]([p, p])
    plain_make = {"adamw": lambda x: torch.optim.AdamW(x, lr=0.1, weight_decay=0.1)}
    plain_make["sgd"] = lambda x: torch.optim.SGD(x, lr=1.0, momentum=0.5)
    with pytest.warns(UserWarning, match="duplicate parameters"):
        plain = plain_make[kind]([q, q])
    WAYS[way](opt, *conflict_of(p))
    q.grad = torch.tensor([1.0, 0.0])
    plain.step()
    assert_close(p, q, "formula", torch.float32)
