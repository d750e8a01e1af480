"""Guards steps that others watch, schedule, average and copy: the operator is seen, and the step is the same."""

import contextlib
import copy
import io
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.optim import lr_scheduler, swa_utils
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import prograd_fast as pf
from tests.optim.kinds import KINDS, OPTIMIZERS, WAYS, conflict_of, everything, losses, point, refused, tensors
from tests.optim.support import same
from tests.tolerances import assert_close

NAMES = {"adamw": "prograd_fast::project_adamw_", "sgd": "prograd_fast::project_sgd_"}


@pytest.mark.parametrize("kind", NAMES)
def test_profiler_and_modes_see_the_operator(kind: str) -> None:
    """The fast step goes through the dispatcher, where others look for it."""
    p = point()
    opt = OPTIMIZERS[kind]([p])
    opt.backward_and_update(*conflict_of(p))

    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        opt.backward_and_update(*conflict_of(p))
    assert NAMES[kind] in {event.name for event in profile.events()}

    class Names(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(func.name().split(".")[0])
            return func(*args, **(kwargs or {}))

    seen: list[str] = []
    with Names():
        opt.backward_and_update(*conflict_of(p))
    assert seen.count(NAMES[kind]) == 1


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_is_the_same_under_every_mode(kind: str, way: str) -> None:
    class Dispatch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return func(*args, **(kwargs or {}))

    class Function(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return func(*args, **(kwargs or {}))

    modes: list[Any] = [contextlib.nullcontext, Dispatch, Function, torch.autograd.detect_anomaly, torch.no_grad]
    modes.append(lambda: torch.autocast("cpu", torch.bfloat16))
    results = []
    for mode in modes:
        params = tensors(dtype=torch.float32)
        opt = OPTIMIZERS[kind](params)
        for step in range(2):
            opt.zero_grad()
            pair = losses(params, step)
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Anomaly Detection has been enabled")
                with mode():
                    WAYS[way](opt, *pair)
        results.append(everything(opt))
    for result in results[1:]:
        assert same(result.values(), results[0].values())


@pytest.mark.parametrize("kind", NAMES)
def test_make_fx_traces_the_operator(kind: str) -> None:
    """The graph of a step on given gradients has the operator, and does the step again when it is run."""
    p, q = point(), point()
    opt, other = OPTIMIZERS[kind]([p]), OPTIMIZERS[kind]([q])
    for one, x in ((opt, p), (other, q)):
        one.backward_and_update(*conflict_of(x))  # makes the state

    def step(a: Tensor, b: Tensor) -> Tensor:
        with torch.enable_grad():
            opt.backward_and_update((p * a).sum(), (p * b).sum())
        return p * 1

    a, b = torch.tensor([1.0, -2.0]), torch.tensor([0.0, 1.0])
    graph = make_fx(step)(a, b)
    assert any(
        NAMES[kind] in str(getattr(node.target, "name", lambda: "")())
        for node in graph.graph.nodes
        if node.op == "call_function"
    )
    other.backward_and_update((q * a).sum(), (q * b).sum())
    assert_close(p, q, "formula", torch.float32)
    graph(a, b)
    other.backward_and_update((q * a).sum(), (q * b).sum())
    if kind == "sgd":  # AdamW's step count is a number in a graph, as torch.optim's
        assert_close(p, q, "formula", torch.float32)


# ---- row 15: λ, schedulers, averages, copies


@pytest.mark.parametrize("kind", KINDS)
def test_lambda_is_a_setting_of_groups(kind: str) -> None:
    """It is in `param_groups`, in `repr`, in `state_dict`, and a change of it counts from the next call on."""
    p = point()
    opt = OPTIMIZERS[kind]([p], lambda_=0.25)
    assert opt.param_groups[0]["lambda_"] == 0.25
    assert "lambda_: 0.25" in repr(opt)
    assert opt.state_dict()["param_groups"][0]["lambda_"] == 0.25
    opt.backward(*conflict_of(p))
    assert p.grad.tolist() == [1, -0.75]
    opt.zero_grad()
    opt.param_groups[0]["lambda_"] = 0.5
    opt.backward(*conflict_of(p))
    assert p.grad.tolist() == [1, -0.5]
    opt.zero_grad()
    for bad in (-1.0, float("nan")):
        opt.param_groups[0]["lambda_"] = bad
        with refused(opt, ValueError, "lambda_"):
            opt.backward(*conflict_of(p))
        with refused(opt, ValueError, "lambda_"):
            opt.backward_and_update(*conflict_of(p))


SCHEDULERS: dict[str, Callable[[Any], Any]] = {
    "LambdaLR": lambda opt: lr_scheduler.LambdaLR(opt, lambda step: 1 / (1 + step)),
    "OneCycleLR": lambda opt: lr_scheduler.OneCycleLR(opt, 0.5, total_steps=9),
    "ReduceLROnPlateau": lambda opt: lr_scheduler.ReduceLROnPlateau(opt, patience=0),
    "warm-up": lambda opt: lr_scheduler.SequentialLR(
        opt, [lr_scheduler.LinearLR(opt, total_iters=2), lr_scheduler.CosineAnnealingLR(opt, 3)], [2]
    ),
    "SWALR": lambda opt: swa_utils.SWALR(opt, 0.05, 3),
}


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("kind", KINDS)
def test_schedulers_see_a_step(kind: str, scheduler: str) -> None:
    """Of every kind: torch warns, which is an error here, of a scheduler that is called before a step."""
    results = []
    for way in WAYS.values():
        params = tensors()
        opt = OPTIMIZERS[kind](params)
        schedule = SCHEDULERS[scheduler](opt)
        rates = []
        for step in range(5):
            opt.zero_grad()
            way(opt, *losses(params, step))
            schedule.step(*([1.0] if scheduler == "ReduceLROnPlateau" else []))
            rates.append(opt.param_groups[0]["lr"])
        results.append((params, rates))
        assert len(set(rates)) > 2
    for params, rates in results[1:]:
        assert rates == results[0][1]
        for x, y in zip(params, results[0][0], strict=True):
            assert_close(x, y, "formula", torch.float64)


def test_averages_of_the_model() -> None:
    model = nn.ParameterList(tensors())
    opt = OPTIMIZERS["adamw"](model.parameters())
    average = swa_utils.AveragedModel(model)
    seen = []
    for step in range(3):
        opt.backward_and_update(*losses(list(model), step))
        average.update_parameters(model)
        seen.append([p.detach().clone() for p in model])
    for i, p in enumerate(average.module):
        assert_close(p, torch.stack([points[i] for points in seen]).mean(0), "formula", torch.float64)


def saved_and_loaded(both: Any) -> Any:
    file = io.BytesIO()
    torch.save(both, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = {"deepcopy": copy.deepcopy, "pickle": lambda both: pickle.loads(pickle.dumps(both)), "torch": saved_and_loaded}


@pytest.mark.parametrize("rule", [None, pf.rules.Bloop(0.5), pf.rules.GradVac(0.5)], ids=str)
@pytest.mark.parametrize("copier", COPIES)
@pytest.mark.parametrize("kind", KINDS)
def test_copies_are_independent_and_alike(kind: str, copier: str, rule: Any) -> None:
    """With counts, floor, a rule's memory; each goes on by itself."""
    params = tensors()
    opt = OPTIMIZERS[kind](params, rule=rule, noise_floor=1e-3)
    opt.backward_and_update(*losses(params, 0))
    others, twin = COPIES[copier]((params, opt))
    assert twin.noise_floor == 1e-3
    before = everything(twin)
    opt.backward_and_update(*losses(params, 1))
    assert same(everything(twin).values(), before.values())
    assert twin.conflict.steps.tolist() == [1, 1]
    twin.backward_and_update(*losses(others, 1))
    assert same(everything(opt).values(), everything(twin).values())
    assert twin.conflict.steps.tolist() == [2, 2]
    assert repr(twin) == repr(opt)
