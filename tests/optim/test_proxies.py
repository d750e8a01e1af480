"""Guards use through Lightning's, Fabric's and accelerate's proxies of an optimizer: nothing in them goes around it.

Each action is done through each proxy. What is expected is written down for a learning rate of 1.
"""

import contextlib
import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import prograd_fast as pf
from tests.optim.frameworks import IGNORED, PROXIES, Numbers, accelerators_forgotten
from tests.optim.kinds import OPTIMIZERS, RATE_ONE, agreement_of, conflict_of, everything
from tests.optim.support import same
from tests.slow import slow_but_for

pytestmark = pytest.mark.filterwarnings(*IGNORED)


@pytest.fixture(autouse=True)
def _no_accelerator() -> Iterator[None]:
    with accelerators_forgotten():
        yield


def plain_steps(opt: Any, p: Tensor) -> None:
    opt.zero_grad()
    opt.backward(*conflict_of(p))
    assert p.grad is not None
    assert p.grad.tolist() == [1, 0]
    opt.step()


def two_backwards(opt: Any, p: Tensor) -> None:
    opt.backward(*conflict_of(p))
    opt.backward(*conflict_of(p, 2.0))
    opt.step()


def one_call(opt: Any, p: Tensor) -> None:
    opt.backward_and_update(*conflict_of(p))
    assert p.grad is None


def pair_closure(opt: Any, p: Tensor) -> None:
    opt.step(lambda: conflict_of(p))


def loss_closure(opt: Any, p: Tensor) -> None:
    def closure() -> Tensor:
        opt.zero_grad()
        opt.backward(*conflict_of(p))
        return p.sum()

    opt.step(closure)


def accumulated(opt: Any, p: Tensor) -> None:
    with opt.accumulate():
        opt.backward(*conflict_of(p))
        assert p.grad is None
    opt.backward(3 * p[1], 1 * p[1])  # the sums agree: (1, 2) and (0, 2)
    opt.step()


def accumulated_then_one_call(opt: Any, p: Tensor) -> None:
    with opt.accumulate():
        opt.backward(*conflict_of(p))
    opt.backward_and_update(3 * p[1], 1 * p[1])


def skipped_batch(opt: Any, p: Tensor) -> None:
    opt.backward(*conflict_of(p))
    opt.zero_grad()
    opt.backward(*agreement_of(p))
    opt.step()


def skipped_block(opt: Any, p: Tensor) -> None:
    with opt.accumulate():
        opt.backward(*conflict_of(p))
    opt.zero_grad()
    opt.backward(*agreement_of(p))
    opt.step()


def forgotten_block(opt: Any, p: Tensor) -> None:
    with opt.accumulate():
        opt.backward(*conflict_of(p))
    with pytest.raises(RuntimeError, match="accumulate"):
        opt.step()
    assert p.tolist() == [0, 0]
    opt.zero_grad()


def block_with_an_error(opt: Any, p: Tensor) -> None:
    with contextlib.suppress(KeyError), opt.accumulate():
        opt.backward(*conflict_of(p))
        raise KeyError
    opt.backward(*agreement_of(p))
    opt.step()


def raised_floor(opt: Any, p: Tensor) -> None:
    opt.noise_floor = 0.8  # b is 0.7 of a
    assert opt.noise_floor == 0.8
    opt.backward(*conflict_of(p))
    opt.step()
    assert opt.conflict.absent.tolist() == [1, 0]


def scaled(opt: Any, p: Tensor) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=65536.0)
    opt.backward(*conflict_of(p), scaler=scaler)
    assert p.grad is not None
    assert p.grad.tolist() == [65536, 0]
    scaler.step(opt)
    scaler.update()


def clipped(opt: Any, p: Tensor) -> None:
    opt.backward(*conflict_of(p, 8.0))
    torch.nn.utils.clip_grad_norm_(p, 1.0)
    opt.step()


# what the two numbers and the counts of conflicts are afterwards, at a learning rate of 1
ACTIONS: dict[str, tuple[Callable[[Any, Tensor], None], list[float], int]] = {
    "plain steps": (plain_steps, [-1, 0], 1),
    "two backwards": (two_backwards, [-3, 0], 2),
    "one call": (one_call, [-1, 0], 1),
    "pair closure": (pair_closure, [-1, 0], 1),
    "loss closure": (loss_closure, [-1, 0], 1),
    "accumulated": (accumulated, [-1, -2], 0),
    "accumulated, then one call": (accumulated_then_one_call, [-1, -2], 0),
    "skipped batch": (skipped_batch, [-1, 1], 1),
    "skipped block": (skipped_block, [-1, 1], 0),
    "forgotten block": (forgotten_block, [0, 0], 0),
    "block with an error": (block_with_an_error, [-1, 1], 0),
    "raised floor": (raised_floor, [-1, 1], 0),
    "scaled": (scaled, [-1, 0], 1),
    "clipped": (clipped, [-1, 0], 1),
}


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("proxy", PROXIES)
@pytest.mark.parametrize("kind", slow_but_for(["sgd"], RATE_ONE))
def test_through_a_proxy(kind: str, proxy: str, action: str) -> None:
    """Row 1 of the table: with a proxy there was no projection at all, and no message."""
    model = Numbers()
    opt = RATE_ONE[kind](model.parameters())
    act, expected, conflicts = ACTIONS[action]

    def body(handed: Any) -> None:
        act(handed, model.p)
        assert handed.conflict.conflicts.tolist() == [conflicts, 0]

    PROXIES[proxy](model, opt, body)
    assert model.p.tolist() == pytest.approx(expected)
    assert opt.conflict.conflicts.tolist() == [conflicts, 0]


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("proxy", slow_but_for(["Fabric"], [name for name in PROXIES if name != "no proxy"]))
def test_adamw_through_a_proxy(proxy: str, action: str) -> None:
    """The same step as without the proxy, bit for bit, state included."""
    model, other = Numbers(), Numbers()
    opt, plain = OPTIMIZERS["adamw"](model.parameters()), OPTIMIZERS["adamw"](other.parameters())
    act = ACTIONS[action][0]
    PROXIES[proxy](model, opt, lambda handed: act(handed, model.p))
    act(plain, other.p)
    assert same(everything(opt).values(), everything(plain).values())


@pytest.mark.parametrize("proxy", PROXIES)
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_state_through_a_proxy(kind: str, proxy: str) -> None:
    """A checkpoint that is taken and loaded through proxies has the rule's memory."""
    model, twin = Numbers(), Numbers()
    opt, other = (OPTIMIZERS[kind](m.parameters(), rule=pf.rules.Bloop(0.5, 0.5)) for m in (model, twin))
    saved: list[Any] = []

    def two_steps_and_save(handed: Any) -> None:
        for factor in (1.0, 3.0):
            handed.zero_grad()
            handed.backward(*conflict_of(model.p, factor))
            handed.step()
        saved.append(handed.state_dict())

    PROXIES[proxy](model, opt, two_steps_and_save)
    twin.load_state_dict(model.state_dict())

    def load(handed: Any) -> None:
        # what these two hand out loads into itself, any torch.optim optimizer too; the Trainer asks the optimizer
        loads = other if proxy in ("Trainer", "forwarding") else handed
        loads.load_state_dict(copy.deepcopy(saved[0]))  # torch shares the state's memory otherwise

    PROXIES[proxy](twin, other, load)
    assert "task_average" in opt.state[model.p]
    for m, o in ((model, opt), (twin, other)):
        o.zero_grad()
        o.backward(*agreement_of(m.p))
        o.step()
    assert same(everything(opt).values(), everything(other).values())
