"""Guards hooks: of modules and tensors once per loss, of .grad once per backward, of the optimizer once per step."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

import prograd_fast as pf
from tests.optim.kinds import (
    KINDS,
    OPTIMIZERS,
    RATE_ONE,
    WAYS,
    conflict_of,
    everything,
    losses,
    point,
    refused,
    tensors,
)
from tests.optim.support import gradients, same
from tests.tolerances import assert_close


class Layers(nn.Module):
    """Two layers; two losses of the output."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(3, 4).double(), nn.Linear(4, 2).double()
        self.x = torch.randn(5, 3, dtype=torch.float64)

    def forward(self) -> Tensor:
        return self.second(self.first(self.x).tanh())

    def losses(self) -> tuple[Tensor, Tensor]:
        output = self()
        return output.square().sum() + output.sum(), (output - 1).square().sum()


def gradients_of(module: Layers, opt: Any) -> list[Tensor]:
    opt.zero_grad()
    opt.backward(*module.losses())
    return [p.grad.clone() for p in module.parameters()]  # type: ignore[union-attr]


# ---- row 4: hooks of tensors and modules


def hook_output(module: Layers, hook: Callable[[Tensor], Tensor]) -> None:
    module.first.register_forward_hook(lambda m, x, y: y.register_hook(hook) and None)


def hook_module(module: Layers, hook: Callable[[Tensor], Tensor]) -> None:
    module.second.register_full_backward_hook(lambda m, x, y: tuple(hook(g) for g in x))


def hook_module_before(module: Layers, hook: Callable[[Tensor], Tensor]) -> None:
    module.second.register_full_backward_pre_hook(lambda m, y: tuple(hook(g) for g in y))


def hook_leaf(module: Layers, hook: Callable[[Tensor], Tensor]) -> None:
    module.first.weight.register_hook(hook)


def hook_node(module: Layers, hook: Callable[[Tensor], Tensor]) -> None:
    def on_node(m: Any, x: Any, y: Tensor) -> None:
        y.grad_fn.register_prehook(lambda grads: tuple(hook(g) for g in grads))  # type: ignore[union-attr]

    module.first.register_forward_hook(on_node)


PLACES = (hook_output, hook_module, hook_module_before, hook_leaf, hook_node)


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.__name__)
@pytest.mark.parametrize("way", WAYS)
def test_hooks_run_once_for_each_loss(way: str, place: Any) -> None:
    """They see the gradients of two backwards, one after the other, and what they return is what goes on."""
    seen: list[Tensor] = []

    def hook(gradient: Tensor) -> Tensor:
        seen.append(gradient.clone())
        return gradient * 0.1

    module, plain = Layers(), Layers()
    place(module, hook)
    WAYS[way](pf.ProGradSGD(module.parameters(), lr=0.1), *module.losses())
    assert len(seen) == 2
    ours = [p.detach() for p in module.parameters()]

    seen.clear()
    place(plain, hook)
    parameters = list(plain.parameters())
    task, general = plain.losses()
    a = torch.autograd.grad(task, parameters, retain_graph=True)
    b = torch.autograd.grad(general, parameters)
    with torch.no_grad():
        for p, g in zip(parameters, pf.reference.project(a, b), strict=True):
            p -= 0.1 * g
    for x, y in zip(ours, parameters, strict=True):
        assert_close(x, y, "formula", torch.float64)


def test_a_scaled_output_scales_both_gradients() -> None:
    """The row's own figures: × 0.1 on the output's gradient made a × 0.01, or left b as it was."""
    p = point()
    h = p * 1
    h.register_hook(lambda g: 0.1 * g)
    opt = pf.ProGradSGD([p], lr=1.0, rule=pf.rules.PCGrad())
    opt.backward(1 * h[0], 1 * h[1])
    assert p.grad is not None
    assert p.grad.tolist() == pytest.approx([0.1, 0.1])


# ---- row 5: checkpoints


class Reentrant(Layers):
    def forward(self) -> Tensor:
        x = self.x.clone().requires_grad_()
        return self.second(checkpoint(lambda x: self.first(x).tanh(), x, use_reentrant=True))


class ReentrantBelowAll(Layers):
    def forward(self) -> Tensor:
        return checkpoint(
            lambda x: self.second(self.first(x).tanh()), self.x.clone().requires_grad_(), use_reentrant=True
        )


class ReentrantSequence(Layers):
    def forward(self) -> Tensor:
        layers = nn.Sequential(self.first, nn.Tanh(), self.second)
        return checkpoint_sequential(layers, 2, self.x.clone().requires_grad_(), use_reentrant=True)


@pytest.mark.parametrize("model", [Reentrant, ReentrantBelowAll, ReentrantSequence])
@pytest.mark.parametrize("kind", KINDS)
def test_reentrant_checkpoints_are_refused(kind: str, model: type[Layers]) -> None:
    """`.grad` stayed None, silently. A block of two backwards is given up with the error."""
    module = model()
    opt = OPTIMIZERS[kind](module.parameters())
    for way in WAYS.values():
        with refused(opt, RuntimeError, "use_reentrant"):
            way(opt, *module.losses())
    with refused(opt, RuntimeError, "use_reentrant"), opt.accumulate():
        opt.backward(*module.losses())
    assert all(p.grad is None for p in module.parameters())
    module.__class__ = Layers
    twin = Layers()
    assert same(gradients_of(module, opt), gradients_of(twin, OPTIMIZERS[kind](twin.parameters())))


class Recomputed(Layers):
    def forward(self) -> Tensor:
        return self.second(checkpoint(lambda x: self.first(x).tanh(), self.x, use_reentrant=False))


@pytest.mark.parametrize("kind", KINDS)
def test_other_checkpoints_work(kind: str) -> None:
    module, plain = Recomputed(), Layers()
    ours, theirs = (gradients_of(m, OPTIMIZERS[kind](m.parameters())) for m in (module, plain))
    assert same(ours, theirs)


# ---- row 8: after .grad is written


def watch(params: list[Any]) -> list[tuple[int, list[bool]]]:
    """The index of each parameter whose hook ran, and which .grad there were then."""
    seen: list[tuple[int, list[bool]]] = []
    for i, p in enumerate(params):
        p.register_post_accumulate_grad_hook(lambda _, i=i: seen.append((i, [p.grad is not None for p in params])))
    return seen


@pytest.mark.parametrize("rule", [None, pf.rules.PCGrad(), pf.rules.Bloop()], ids=str)
@pytest.mark.parametrize("scope", ["tensor", "global"])
@pytest.mark.parametrize("kind", KINDS)
def test_post_accumulate_hooks(kind: str, scope: Any, rule: Any) -> None:
    """Exactly once per parameter and backward, when all .grad are written; in a block at the closing call."""
    params = tensors(((3,), (2, 2), (2,)))
    seen = watch(params)
    opt = OPTIMIZERS[kind](params, scope=scope, rule=rule)

    def once(expected: list[int]) -> None:
        assert [i for i, _ in seen] == expected
        assert all(all(written[j] for j in expected) for _, written in seen)
        seen.clear()

    opt.backward(*losses(params, 0))
    once([0, 1, 2])
    opt.zero_grad()
    with opt.accumulate():
        opt.backward(*losses(params, 1))
        opt.backward(*losses(params, 2))
        assert not seen
    opt.backward(*losses(params, 3))
    once([0, 1, 2])
    opt.zero_grad()
    opt.backward(params[0].sum(), params[2].sum())  # one has only a, one only b, one neither
    once([0, 2])
    opt.zero_grad()
    opt.backward(params[1].sum())
    once([1])
    opt.backward(*losses(params, 4), create_graph=True)
    once([0, 1, 2])


def test_post_accumulate_hooks_may_step_and_drop() -> None:
    """The documented use: an optimizer for each parameter, whose step frees its .grad as soon as it is there."""
    params = tensors()
    opt = pf.ProGradSGD(params, lr=1.0)
    expected = [p.detach() - g for p, g in zip(params, pf.reference.project(*gradients(params, 0)), strict=True)]

    def update(p: Any) -> None:
        with torch.no_grad():
            p -= p.grad
        p.grad = None

    for p in params:
        p.register_post_accumulate_grad_hook(update)
    opt.backward(*losses(params, 0))
    for p, y in zip(params, expected, strict=True):
        assert p.grad is None
        assert_close(p, y, "formula", torch.float64)


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_one_call_has_no_grad_for_hooks(kind: str) -> None:
    """As its docstring says: no .grad is written, so hooks that run after that do not."""
    params = tensors()
    seen = watch(params)
    opt = OPTIMIZERS[kind](params)
    opt.backward_and_update(*losses(params, 0))
    assert not seen
    assert "post-accumulate" in (type(opt).backward_and_update.__doc__ or "")


# ---- row 9: hooks of the optimizer


@pytest.fixture
def everyones() -> Iterator[list[tuple[str, Any]]]:
    """What hooks of all optimizers of the process have seen."""
    seen: list[tuple[str, Any]] = []
    handles = [
        register_optimizer_step_pre_hook(lambda opt, args, kwargs: seen.append(("pre", opt))),
        register_optimizer_step_post_hook(lambda opt, args, kwargs: seen.append(("post", opt))),
    ]
    yield seen
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize("kind", KINDS)
def test_step_hooks_run_once(kind: str, everyones: list[tuple[str, Any]]) -> None:
    """Of this optimizer, of all optimizers, and of the wrapped one; torch.optim's classes are patched by then."""
    torch.optim.AdamW(tensors()), torch.optim.SGD(tensors(), lr=0.1)
    params = tensors()
    opt = OPTIMIZERS[kind](params)
    calls: list[Any] = []
    opt.register_step_pre_hook(lambda opt, args, kwargs: calls.append(("pre", opt)))
    opt.register_step_post_hook(lambda opt, args, kwargs: calls.append(("post", opt)))
    inner: list[str] = []
    if kind == "wrapper":
        opt.optimizer.register_step_pre_hook(lambda *_: inner.append("pre"))
        opt.optimizer.register_step_post_hook(lambda *_: inner.append("post"))

    def plain(opt: Any, task: Tensor, general: Tensor) -> None:
        task.backward()
        opt.step()

    def loss_closure(opt: Any, task: Tensor, general: Tensor) -> None:
        opt.step(lambda: opt.backward(task, general))

    for way in (*WAYS.values(), loss_closure, plain):
        opt.zero_grad()
        way(opt, *losses(params, 0))
        assert calls == [("pre", opt), ("post", opt)]
        assert [name for name, _ in everyones] == ["pre", "post"]
        assert all(one in (opt, getattr(opt, "optimizer", opt)) for _, one in everyones)
        assert inner == (["pre", "post"] if kind == "wrapper" else [])
        for seen in (calls, everyones, inner):
            seen.clear()  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", RATE_ONE)
def test_a_pre_hook_may_change_the_gradient(kind: str) -> None:
    """It runs before the update, when .grad is the projected gradient; a closure comes after it, as in torch.optim."""
    p = point()
    opt = RATE_ONE[kind]([p])

    def halve(*_: Any) -> None:
        p.grad.mul_(0.5)  # type: ignore[union-attr]

    opt.register_step_pre_hook(halve)
    opt.backward(*conflict_of(p))
    opt.step()
    assert p.tolist() == [-0.5, 0]


@pytest.mark.parametrize("rule", [None, pf.rules.Bloop(0.5), pf.rules.GradVac(0.5)], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_state_dict_hooks(kind: str, rule: Any) -> None:
    """Each once; a hook that unwraps {"optimizer": ...} does not lose the rule's memory."""
    params, others = tensors(), tensors()
    opt, twin = (OPTIMIZERS[kind](p, rule=rule) for p in (params, others))
    calls: list[str] = []

    def wrap(o: Any, state: dict[str, Any]) -> dict[str, Any]:
        calls.append("saved")
        return {"optimizer": state, "epoch": 3}

    def unwrap(o: Any, state: dict[str, Any]) -> dict[str, Any]:
        calls.append("loading")
        return state["optimizer"]

    opt.register_state_dict_pre_hook(lambda o: calls.append("saving"))
    opt.register_state_dict_post_hook(wrap)
    twin.register_load_state_dict_pre_hook(unwrap)
    twin.register_load_state_dict_post_hook(lambda o: calls.append("loaded"))
    opt.backward_and_update(*losses(params, 0))
    state = opt.state_dict()
    assert calls == ["saving", "saved"]
    calls.clear()
    for p, q in zip(params, others, strict=True):
        q.data.copy_(p)
    twin.load_state_dict(copy.deepcopy(state))  # torch shares the state's memory otherwise
    assert calls == ["loading", "loaded"]
    for o, p in ((opt, params), (twin, others)):
        o.backward_and_update(*losses(p, 1))
    assert same(everything(opt).values(), everything(twin).values())


@pytest.mark.parametrize("kind", KINDS)
def test_a_hook_that_changes_a_state_in_place(kind: str) -> None:
    """torch lets a hook edit what is saved or loaded, and return nothing."""
    params = tensors()
    opt = OPTIMIZERS[kind](params)
    opt.backward_and_update(*losses(params, 0))
    opt.register_state_dict_post_hook(lambda o, state: state["param_groups"][0].update(lr=0.125))
    state = opt.state_dict()
    assert state["param_groups"][0]["lr"] == 0.125
    opt.register_load_state_dict_pre_hook(lambda o, state: state["param_groups"][0].update(lr=0.5))
    opt.load_state_dict(state)
    assert opt.param_groups[0]["lr"] == 0.5
