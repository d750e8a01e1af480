"""Guards against silently wrong steps: what a sceptical new user, with README and the package alone, has tried.

Each is refused in words, or gives the step that the formula gives: for `conflict_of`, [-1, 0] at a learning rate of 1.
"""

import functools
import weakref
from typing import Any

import pytest
import torch
from torch import nn

import prograd_fast as pf
from tests.optim.kinds import (
    RATE_ONE,
    WAYS,
    agreement_of,
    conflict_of,
    losses,
    point,
    refused,
    sgd,
    tensors,
    ways,
)
from tests.tolerances import assert_close

# ---- losses


@ways
def test_the_same_loss_twice(way: str) -> None:
    """a = b, no conflict; the graph is freed once and asked for once more."""
    p = point()
    loss = (p - 1).square().sum()
    WAYS[way](sgd(p), loss, loss)
    assert p.tolist() == [2, 2]


@ways
def test_a_loss_and_its_negative(way: str) -> None:
    """A straight conflict: nothing is left."""
    p = point()
    loss = (p - 1).square().sum()
    WAYS[way](sgd(p), loss, -loss)
    assert p.tolist() == pytest.approx([0, 0])


@ways
def test_losses_that_share_a_graph_that_saves(way: str) -> None:
    """The first backward must leave the graph to the second, and the second must free it."""
    p = point()
    hidden = (p + 1).exp()
    reference = weakref.ref(hidden)
    pair = (hidden[0] - hidden[1]).square() + hidden[0], hidden[1].square()
    a, b = (torch.autograd.grad(loss, p, retain_graph=True)[0] for loss in pair)
    WAYS[way](sgd(p), *pair)
    assert_close(-p, pf.reference.project([a], [b])[0], "formula", torch.float32)
    del hidden
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(pair[1], p)
    del pair
    assert reference() is None


@ways
def test_a_general_loss_of_another_model_pass(way: str) -> None:
    """Two forwards, two graphs."""
    layer = nn.Linear(2, 1, bias=False)
    nn.init.zeros_(layer.weight)
    x = torch.tensor([1.0, -1.0]), torch.tensor([0.0, 1.0])
    WAYS[way](sgd(layer.weight), layer(x[0]).sum(), layer(x[1]).sum())
    assert layer.weight.tolist() == [[-1, 0]]


def test_a_closure_that_has_called_backward_already() -> None:
    """It returns both losses, as the README's closure does: .grad would count twice."""
    p = point()
    opt = sgd(p)

    def closure() -> Any:
        opt.zero_grad()
        pair = conflict_of(p)
        opt.backward(*pair, retain_graph=True)
        return pair

    try:
        opt.step(closure)
    except RuntimeError as error:
        assert "closure" in str(error)  # noqa: PT017
        assert p.tolist() == [0, 0]
    else:
        assert p.tolist() == [-1, 0]


def test_a_closure_whose_second_value_is_an_auxiliary_loss() -> None:
    """It has called backward on the first, as torch.optim asks; the graph is gone then."""
    p = point()
    opt = sgd(p)

    def closure() -> Any:
        opt.zero_grad()
        task, auxiliary = (p - 1).square().sum(), (p + 1).square().sum()
        (task + auxiliary).backward()
        return task, auxiliary

    with pytest.raises(RuntimeError):
        opt.step(closure)
    assert p.tolist() == [0, 0]


@pytest.mark.parametrize("call", ["backward", "backward_and_update"])
def test_arguments_that_are_no_losses(call: str) -> None:
    """Each by its name."""
    p, other = point(), point()
    opt = sgd(p)
    task, general = conflict_of(p)
    attempts: list[tuple[tuple[Any, ...], type[Exception], str]] = [
        ((task.item(), general), TypeError, "task"),
        ((task, general.item()), TypeError, "general"),
        ((p * 1, general), ValueError, "task.*one element"),
        ((task, p * 1), ValueError, "general.*one element"),
        ((task, general.detach()), ValueError, "general"),
        ((task.detach(), general), ValueError, "task"),
        (((task, general),), TypeError, "task"),
        ((other.sum(), other.sum()), ValueError, "task|general"),
        ((torch.ones(()), general), ValueError, "task"),
    ]
    for arguments, error, match in attempts:
        with refused(opt, error, match):
            getattr(opt, call)(*arguments)


def test_positions_of_options() -> None:
    """`backward(loss, None, True)` is retain_graph in torch; here options have names."""
    p = point()
    opt = sgd(p)
    with refused(opt, TypeError, "positional"):
        opt.backward(*conflict_of(p), True)


def test_an_unnamed_gradient_argument() -> None:
    """Tensor.backward(gradient=...) has no meaning for two losses."""
    p = point()
    with refused(sgd(p), TypeError, "gradient"):
        sgd(p).backward(*conflict_of(p), gradient=torch.ones(()))


# ---- .grad


@ways
def test_a_gradient_that_was_there(way: str) -> None:
    """Composable: it is added to; in one call it is part of the task gradient. Both as documented."""
    p = point()
    opt = sgd(p)
    p.grad = torch.tensor([0.0, 3.0])
    WAYS[way](opt, *conflict_of(p))
    assert p.tolist() == ([-1, -3] if way == "composable" else [-1, -2])


def test_a_gradient_that_is_a_view_of_a_bucket() -> None:
    """As of DDP's gradient_as_bucket_view, or a flat buffer: written in place."""
    p, flat = point(), torch.zeros(6)
    p.grad = flat[2:4]
    opt = sgd(p)
    opt.backward(*conflict_of(p))
    assert flat.tolist() == [0, 0, 1, 0, 0, 0]
    assert p.grad.data_ptr() == flat[2:].data_ptr()


def test_gradients_are_nobody_elses_memory() -> None:
    """A gradient may be changed in place without changing another, or what autograd has kept."""
    p, q = point(), point()
    opt = sgd(p, q)
    opt.backward((p + q).sum(), (p + q).sum())
    p.grad.mul_(5)  # type: ignore[union-attr]
    assert q.grad is not None
    assert q.grad.tolist() == [1, 1]


def test_two_optimizers_of_one_model() -> None:
    """Each writes the gradients of its own parameters; the second needs the graph."""
    p, q = point(), point()
    first, second = sgd(p), sgd(q)
    pair = tuple(x + y for x, y in zip(conflict_of(p), conflict_of(q), strict=True))
    first.backward(*pair, retain_graph=True)
    assert q.grad is None
    second.backward(*pair)
    first.step()
    second.step()
    assert p.tolist() == q.tolist() == [-1, 0]


def test_a_plain_backward_before_and_after() -> None:
    """It adds to .grad, unprojected."""
    p = point()
    opt = sgd(p)
    (5 * p[1]).backward()
    opt.backward(*conflict_of(p))
    (7 * p[0]).backward()
    opt.step()
    assert p.tolist() == [-8, -5]


def test_step_without_backward_says_so_once() -> None:
    """`loss.backward(); opt.step()` with an optimizer that was bought for two losses."""
    p = point()
    opt = sgd(p)
    for _ in range(3):
        opt.zero_grad()
        p.sum().backward()
        if opt.state.get("warned") is None and p[0] == 0:
            with pytest.warns(UserWarning, match="backward"):
                opt.step()
        else:
            opt.step()
    assert p.tolist() == [-3, -3]


def test_step_twice_and_step_on_nothing() -> None:
    """As torch.optim: the same gradient again; no gradient, no move."""
    p = point()
    opt = sgd(p)
    opt.backward(*conflict_of(p))
    opt.step()
    opt.step()
    assert p.tolist() == [-2, 0]
    opt.zero_grad()
    opt.step()
    assert p.tolist() == [-2, 0]


def test_a_graph_through_the_gradient() -> None:
    """create_graph: the new .grad is part of a graph, and an old one is not written over."""
    p = nn.Parameter(torch.tensor([2.0, 3.0], dtype=torch.float64))
    opt = sgd(p)
    opt.backward(p[0].square() - p[1].square(), p[1].square(), create_graph=True)
    first = p.grad
    assert first is not None
    (second,) = torch.autograd.grad(first.sum(), p, retain_graph=True)
    assert second.tolist() == pytest.approx([2, 0])
    opt.backward(p[0].square() - p[1].square(), p[1].square(), create_graph=True)
    assert first.tolist() == pytest.approx([4, 0])
    assert p.grad is not None
    assert p.grad.tolist() == pytest.approx([8, 0])


# ---- blocks


def test_blocks_within_blocks() -> None:
    """The inner one's end is not the end."""
    p = point()
    opt = sgd(p)
    with opt.accumulate():
        with opt.accumulate():
            opt.backward(*conflict_of(p))
        opt.backward(*conflict_of(p))
        assert p.grad is None
    opt.backward(3 * p[1], 1 * p[1])
    opt.step()
    assert p.tolist() == [-2, -1]


def test_a_block_that_is_left_early() -> None:
    """By return, break or continue: no exception, so the sums are kept for the closing call."""
    p = point()
    opt = sgd(p)
    for _ in range(2):
        with opt.accumulate():
            opt.backward(*conflict_of(p))
            continue
    opt.backward(*agreement_of(p))
    opt.step()
    assert p.tolist() == pytest.approx([-3.6, 1.8])  # a = (3, -3), b = (1, 2): g = a + 3/5 b


def test_the_update_within_a_block_is_refused() -> None:
    p = point()
    opt = sgd(p)
    with opt.accumulate():
        opt.backward(*conflict_of(p))
        for call in (
            lambda: opt.backward_and_update(*conflict_of(p)),
            opt.step,
            lambda: opt.step(lambda: conflict_of(p)),
        ):
            with pytest.raises(RuntimeError, match="accumulate"):
                call()
    assert p.tolist() == [0, 0]


def test_a_checkpoint_amid_a_block() -> None:
    """Loading a state is no end of a block: what was summed is dropped by zero_grad alone."""
    p = point()
    opt = sgd(p)
    state = opt.state_dict()
    with opt.accumulate():
        opt.backward(*conflict_of(p))
    opt.load_state_dict(state)
    with pytest.raises(RuntimeError, match="accumulate"):
        opt.step()


@pytest.mark.parametrize("kind", RATE_ONE)
def test_micro_batches_are_one_batch(kind: str) -> None:
    """k parts in a block, each loss over k, are the whole batch."""
    params, others = tensors(), tensors()
    opt, whole = RATE_ONE[kind](params), RATE_ONE[kind](others)
    for part in range(3):
        task, general = losses(params, part)
        if part < 2:
            with opt.accumulate():
                opt.backward(task / 3, general / 3)
        else:
            opt.backward(task / 3, general / 3)
    opt.step()
    pairs = [losses(others, part) for part in range(3)]
    whole.backward(*(sum(pair[k] for pair in pairs) / 3 for k in range(2)))
    whole.step()
    for x, y in zip(params, others, strict=True):
        assert_close(x, y, "formula", torch.float64)
    assert opt.conflict.steps.tolist() == [1, 1]


# ---- settings


def test_settings_that_are_wrong() -> None:
    """Each is named, whenever it is given."""
    attempts: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"noise_floor": -1.0}, ValueError, "noise_floor"),
        ({"noise_floor": float("nan")}, ValueError, "noise_floor"),
        ({"noise_floor": "high"}, TypeError, "noise_floor"),
        ({"lambda_": True}, TypeError, "lambda_"),
        ({"lambda_": float("inf")}, ValueError, "lambda_"),
        ({"scope": "params"}, ValueError, "scope"),
        ({"rule": "pcgrad"}, TypeError, "rule"),
        ({"rule": pf.rules.PCGrad}, TypeError, "rule"),
        ({"lamda": 0.5}, TypeError, "lamda"),
    ]
    for settings, error, match in attempts:
        with pytest.raises(error, match=match):
            sgd(point(), **settings)
        with pytest.raises(error, match=match):
            pf.ProGrad(torch.optim.Adam([point()]), **settings)
    opt = sgd(point())
    for value in (-1.0, float("nan"), "high"):
        with pytest.raises((TypeError, ValueError), match="noise_floor"):
            opt.noise_floor = value
    assert opt.noise_floor is None


def test_noise_floors() -> None:
    """The default counts rounding as no general gradient, 0 counts everything, and a change counts at once."""
    p = point()
    opt = sgd(p)
    pair = functools.partial(lambda: (p[0] - p[1], 1e-6 * p[1]))
    opt.backward_and_update(*pair())
    assert p.tolist() == [-1, 1]
    assert opt.conflict.absent.tolist() == [1]
    opt.noise_floor = 0.0
    opt.backward_and_update(*pair())
    assert p.tolist() == [-2, 1]
    opt.noise_floor = None
    opt.backward_and_update(*pair())
    assert p.tolist() == [-3, 2]
    assert pf.optim.NOISE_FLOORS[torch.float32] == 1e-5
