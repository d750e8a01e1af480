"""Guards against silently wrong steps: more attempts, with models, threads, compilers and autocast around the step.

As in test_attempts.py each is refused in words, or gives the step that the formula gives.
"""

import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import prograd_fast as pf
from tests.optim.kinds import (
    OPTIMIZERS,
    WAYS,
    Twin,
    conflict_of,
    everything,
    losses,
    point,
    refused,
    sgd,
    tensors,
    ways,
)
from tests.optim.support import same
from tests.slow import slow_but_for
from tests.tolerances import assert_close

# ---- parameters


@ways
def test_a_model_whose_parameters_were_replaced(way: str) -> None:
    """`load_state_dict(assign=True)` after the optimizer was built: it holds parameters that nothing reaches."""
    layer = nn.Linear(2, 1, bias=False)
    opt = sgd(layer.weight)
    layer.load_state_dict({"weight": torch.ones(1, 2)}, assign=True)
    loss = layer(torch.ones(2)).sum()
    with refused(opt, ValueError, "reaches none|depends on"):
        WAYS[way](opt, loss, loss * 2)


@ways
def test_frozen_and_thawed(way: str) -> None:
    """requires_grad is looked at when backward is called."""
    p, q = point(), point()
    q.requires_grad_(False)
    opt = sgd(p, q)
    WAYS[way](opt, conflict_of(p)[0] + conflict_of(q)[0], conflict_of(p)[1] + conflict_of(q)[1])
    assert (p.tolist(), q.tolist()) == ([-1, 0], [0, 0])
    q.requires_grad_()
    p.requires_grad_(False)
    opt.zero_grad()
    WAYS[way](opt, conflict_of(p)[0] + conflict_of(q)[0], conflict_of(p)[1] + conflict_of(q)[1])
    assert (p.tolist(), q.tolist()) == ([-1, 0], [-1, 0])
    assert opt.conflict.steps.tolist() == [1, 1]


def test_frozen_within_a_block() -> None:
    """Its sums are of a parameter that is not trained any more."""
    p, q = point(), point()
    opt = sgd(p, q)
    with opt.accumulate():
        opt.backward(p.sum() + q.sum(), p.sum() + q.sum())
    q.requires_grad_(False)
    opt.backward(*conflict_of(p))
    opt.step()
    assert q.tolist() == [0, 0]
    assert p.tolist() == [-2, 0]


@ways
def test_tied_parameters(way: str) -> None:
    """One tensor under two names has one gradient."""
    model = nn.ModuleDict({"a": nn.Linear(2, 1, bias=False), "b": nn.Linear(2, 1, bias=False)})
    model["b"].weight = model["a"].weight
    nn.init.zeros_(model["a"].weight)
    weight = model["a"].weight
    opt = sgd(*model.parameters())
    task = model["a"](torch.tensor([1.0, 0.0])).sum() + model["b"](torch.tensor([0.0, -1.0])).sum()
    WAYS[way](opt, task, model["b"](torch.tensor([0.0, 1.0])).sum())
    assert weight.tolist() == [[-1, 0]]


@ways
def test_parametrized_modules(way: str) -> None:
    """weight_norm's two originals are the parameters."""
    torch.manual_seed(0)
    layer = parametrizations.weight_norm(nn.Linear(3, 2).double())
    params = list(layer.parameters())
    x = torch.randn(4, 3, dtype=torch.float64)
    task, general = layer(x).square().sum(), (layer(x) - 3).square().sum()
    a, b = (torch.autograd.grad(loss, params, retain_graph=True) for loss in (task, general))
    expected = [p.detach() - g for p, g in zip(params, pf.reference.project(a, b), strict=True)]
    WAYS[way](sgd(*params), task, general)
    for x_, y in zip(params, expected, strict=True):
        assert_close(x_, y, "formula", torch.float64)


@ways
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_memory_formats(kind: str, way: str) -> None:
    """Parameters, gradients and state in channels_last, transposed or strided memory are the same numbers."""
    formats: list[Callable[[Tensor], Tensor]] = [
        lambda x: x,
        lambda x: x.to(memory_format=torch.channels_last),
        lambda x: x.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0),
        lambda x: x.repeat_interleave(2, 3)[..., ::2],
    ]
    results = []
    for change in formats:
        (p,) = tensors(((4, 3, 2, 2),))
        p = nn.Parameter(change(p.detach()))
        opt = OPTIMIZERS[kind]([p], scope="row")
        for step in range(3):
            opt.zero_grad()
            WAYS[way](opt, *losses([p], step))
        results.append(p)
    for p in results[1:]:
        assert_close(p, results[0], "trajectory", torch.float64)


@ways
def test_a_model_that_was_converted_after_the_optimizer_was_built(way: str) -> None:
    """`.double()` changes the parameters' data; torch.optim's state would be float32."""
    layer = nn.Linear(2, 1, bias=False)
    nn.init.zeros_(layer.weight)
    opt = sgd(layer.weight)
    layer.double()
    x = torch.tensor([1.0, -1.0]).double(), torch.tensor([0.0, 1.0]).double()
    WAYS[way](opt, layer(x[0]).sum(), layer(x[1]).sum())
    assert layer.weight.dtype == torch.float64
    assert layer.weight.tolist() == [[-1, 0]]


@pytest.mark.parametrize("params", ["names", "generator", "dictionary of groups"])
def test_parameters_as_torch_takes_them(params: str) -> None:
    p = point()
    given: Any = {
        "names": [("p", p)],
        "generator": (x for x in [p]),
        "dictionary of groups": [{"params": p, "lr": 1.0}],
    }
    opt = pf.ProGradSGD(given[params], lr=1.0)
    opt.backward_and_update(*conflict_of(p))
    assert p.tolist() == [-1, 0]


@ways
def test_lazy_parameters(way: str) -> None:
    """They have no shape before the first forward, and one afterwards."""
    layer = nn.LazyLinear(1, bias=False)
    opt = sgd(layer.weight)
    loss = layer(torch.tensor([1.0, -1.0])).sum()
    nn.init.zeros_(layer.weight)
    WAYS[way](opt, loss, layer(torch.tensor([0.0, 1.0])).sum())
    assert layer.weight.tolist() == [[-1, 0]]


# ---- surroundings


@ways
def test_another_thread(way: str) -> None:
    """The step is the same from a thread that has its own grad mode."""
    p = point()
    opt = sgd(p)
    pair = conflict_of(p)
    thread = threading.Thread(target=lambda: WAYS[way](opt, *pair))
    thread.start()
    thread.join()
    assert p.tolist() == [-1, 0]


@ways
def test_saved_tensors_elsewhere(way: str) -> None:
    """Hooks of saved tensors run for both losses."""
    p = point()
    with torch.autograd.graph.save_on_cpu():
        hidden = (p + 1).exp()
    pair = (hidden[0] - hidden[1], hidden[1] * 1)
    WAYS[way](sgd(p), *pair)
    assert p.tolist() == pytest.approx([-torch.e, 0])


@pytest.mark.parametrize("way", slow_but_for(["one call"], WAYS))
@pytest.mark.parametrize("backend", slow_but_for(["aot_eager"], ["eager", "aot_eager"]))
def test_a_compiled_model(way: str, backend: str) -> None:
    """Its graph is asked for twice; a compiler that gives its buffers away must not give them to the first."""
    torch.compiler.reset()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    twin = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    twin.load_state_dict(model.state_dict())
    x = torch.randn(5, 3)
    for one, forward in ((model, torch.compile(model, backend=backend)), (twin, twin)):
        opt = pf.ProGradSGD(one.parameters(), lr=0.1)
        for _ in range(2):
            opt.zero_grad()
            output = forward(x)
            WAYS[way](opt, output.square().sum(), (output - 1).square().sum())
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        assert_close(p, q, "trajectory", torch.float32)
    torch.compiler.reset()


@ways
def test_a_subclass_with_its_own_step(way: str) -> None:
    """`super().step()` is the update, and is called once."""
    calls = []

    class Mine(pf.ProGradSGD):
        def step(self, closure: Any = None) -> Any:
            calls.append(1)
            return super().step(closure)

    p = point()
    WAYS[way](Mine([p], lr=1.0), *conflict_of(p))
    assert p.tolist() == [-1, 0]
    assert calls == [1]


@ways
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_losses_under_autocast(kind: str, way: str) -> None:
    """The graph was made in bfloat16; gradients of float32 parameters are compared in float32."""
    torch.manual_seed(0)
    layers = [nn.Linear(8, 8) for _ in range(2)]
    layers[1].load_state_dict(layers[0].state_dict())
    x = torch.randn(4, 8)
    for i, layer in enumerate(layers):
        opt = OPTIMIZERS[kind](layer.parameters())
        with torch.autocast("cpu", torch.bfloat16):
            output = layer(x)
            pair = output.float().square().sum(), (output.float() - 1).square().sum()
            if i:
                WAYS[way](opt, *pair)
        if not i:
            WAYS[way](opt, *pair)
    assert same(layers[0].parameters(), layers[1].parameters())


@ways
def test_garbage_is_not_kept(way: str) -> None:
    """After a step nothing of the graph, of the losses or of the gradients is held by the optimizer."""
    p = point()
    opt = OPTIMIZERS["adamw"]([p])
    pair = conflict_of(p)
    held = [weakref.ref(loss) for loss in pair]
    WAYS[way](opt, *pair)
    del pair
    assert [ref() for ref in held] == [None, None]


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_the_ways_in_turn(kind: str) -> None:
    """An optimizer whose user changes between the ways: one trajectory."""
    params = tensors()
    opt, twin = OPTIMIZERS[kind](params), Twin(kind, params)
    for step in range(6):
        opt.zero_grad()
        list(WAYS.values())[step % 3](opt, *losses(params, step))
        twin.update(step)
    twin.check(params, "trajectory")
    assert len(everything(opt)) > 0
