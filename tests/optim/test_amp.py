"""Guards GradScaler and half precision: every rule sees gradients without the scale, bad ones skip and lower it."""

import math
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import prograd_fast as pf
from prograd_fast import reference
from tests.optim.kinds import KINDS, OPTIMIZERS, PLAIN, RATE_ONE, RULES, conflict_of, everything, losses, point, tensors
from tests.optim.support import gradients, same
from tests.slow import slow_but_for
from tests.tolerances import assert_close

# the warning has a test of its own
pytestmark = pytest.mark.filterwarnings("ignore:.*that were scaled by hand:UserWarning")

# who multiplies the losses and what else is done; "one call" is backward_and_update
WAYS = ["scaler=", "by hand", "unscaled and clipped", "one call"]


def scaler_at(scale: float, **settings: Any) -> torch.amp.GradScaler:
    return torch.amp.GradScaler("cpu", init_scale=scale, **settings)


def scaled_step(opt: Any, scaler: torch.amp.GradScaler, pair: tuple[Tensor, Tensor], way: str) -> None:
    opt.zero_grad()
    if way == "one call":
        opt.backward_and_update(*pair, scaler=scaler)
    else:
        if way == "by hand":  # a warning says once what is better
            opt.backward(scaler.scale(pair[0]), scaler.scale(pair[1]))
        else:
            opt.backward(*pair, scaler=scaler)
        if way == "unscaled and clipped":
            scaler.unscale_(opt)
            torch.nn.utils.clip_grad_norm_([p for group in opt.param_groups for p in group["params"]], 1e6)
        scaler.step(opt)
    scaler.update()


# ---- the same steps as without a scaler


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", RATE_ONE)
def test_pcgrad_unscales_both(kind: str, way: str) -> None:
    """Row 2 of the table: a = (1, 0), b = (0, 1), a step to (-1, -1); the general gradient was never unscaled."""
    p = point()
    opt = RATE_ONE[kind]([p], rule=pf.rules.PCGrad())
    scaled_step(opt, scaler_at(65536.0), (1 * p[0], 1 * p[1]), way)
    assert p.tolist() == [-1, -1]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("scale", slow_but_for([65536.0], [1.0, 1024.0, 65536.0, 2.0**24]))
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("kind", slow_but_for(["adamw"], KINDS))
def test_scaled_steps_are_unscaled_steps(kind: str, rule: str, scale: float, way: str) -> None:
    """The scale doubles after each step: memory of a rule that was kept at one scale would be wrong at the next."""
    p, q = (tensors(dtype=torch.float32) for _ in range(2))
    opt, plain = (OPTIMIZERS[kind](params, rule=RULES[rule]()) for params in (p, q))
    scaler = scaler_at(scale, growth_interval=1)
    if way == "by hand" and rule in ("Bloop", "GradVac"):
        with pytest.raises(RuntimeError, match="scaler="):  # what is remembered cannot be unscaled afterwards
            scaled_step(opt, scaler, losses(p, 0), way)
        return
    for step in range(4):
        scaled_step(opt, scaler, losses(p, step), way)
        plain.zero_grad()
        plain.backward(*losses(q, step))
        plain.step()
    assert scaler.get_scale() == 16 * scale
    expected = everything(plain)
    for key, x in everything(opt).items():  # one call leaves no .grad
        assert_close(x, expected.pop(key), "trajectory", torch.float32)
    assert {name for _, _, name in expected} <= {"grad"}
    for name in ("steps", "conflicts", "absent", "non_finite"):
        assert getattr(opt.conflict, name).tolist() == getattr(plain.conflict, name).tolist()
    assert_close(opt.conflict.cosine, plain.conflict.cosine, "formula", torch.float32)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("scale", [3000.0, 1e-3, 1e10])
def test_scales_that_are_no_power_of_two(scale: float, way: str) -> None:
    p, q = (tensors(dtype=torch.float32) for _ in range(2))
    opt, plain = (OPTIMIZERS["adamw"](params, rule=pf.rules.CAGrad(0.4)) for params in (p, q))
    scaler = scaler_at(scale)
    for step in range(3):
        scaled_step(opt, scaler, losses(p, step), way)
        plain.zero_grad()
        plain.backward(*losses(q, step))
        plain.step()
    for x, y in zip(p, q, strict=True):
        assert_close(x, y, "trajectory", torch.float32)


@pytest.mark.parametrize("closing", ["backward", "one call"])
@pytest.mark.parametrize("rule", ["none", "PCGrad", "Bloop"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_scaled_block(kind: str, rule: str, closing: str) -> None:
    """Backwards of an accumulate() block are scaled alike, and unscaled once."""
    p, q = (tensors(dtype=torch.float32) for _ in range(2))
    opt, plain = (OPTIMIZERS[kind](params, rule=RULES[rule]()) for params in (p, q))
    scaler = scaler_at(65536.0)
    with opt.accumulate():
        opt.backward(*losses(p, 0), scaler=scaler)
    scaled_step_without_zero_grad(opt, scaler, losses(p, 1), closing)
    with plain.accumulate():
        plain.backward(*losses(q, 0))
    plain.backward(*losses(q, 1))
    plain.step()
    for x, y in zip(p, q, strict=True):
        assert_close(x, y, "trajectory", torch.float32)


def scaled_step_without_zero_grad(opt: Any, scaler: torch.amp.GradScaler, pair: Any, closing: str) -> None:
    if closing == "one call":
        opt.backward_and_update(*pair, scaler=scaler)
    else:
        opt.backward(*pair, scaler=scaler)
        scaler.step(opt)
    scaler.update()


@pytest.mark.parametrize("second", ["no scaler", "another scaler"])
def test_a_block_of_two_scalers_is_refused(second: str) -> None:
    """Sums of gradients at two scales are nobody's gradient."""
    p = point()
    opt = pf.ProGradSGD([p], lr=1.0)
    with opt.accumulate():
        opt.backward(*conflict_of(p), scaler=scaler_at(1024.0))
    scaler = {} if second == "no scaler" else {"scaler": scaler_at(512.0)}
    with pytest.raises(ValueError, match="scaler"):
        opt.backward(*conflict_of(p), **scaler)
    assert p.grad is None


def test_a_disabled_scaler_is_none() -> None:
    """`enabled=False` is the usual switch of scripts that run with and without mixed precision."""
    p = point()
    opt = pf.ProGradSGD([p], lr=1.0)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    for way in WAYS:
        scaled_step(opt, scaler, conflict_of(p), way)
    assert p.tolist() == [-4, 0]


# ---- gradients that are not finite


@pytest.mark.parametrize("bad", [("task", math.inf), ("general", math.inf), ("general", math.nan), ("general", -1e30)])
@pytest.mark.parametrize("rule", slow_but_for(["none", "Bloop"], RULES))
@pytest.mark.parametrize("way", ["scaler=", "unscaled and clipped", "one call"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_gradient_that_is_not_finite(kind: str, way: str, rule: str, bad: tuple[str, float]) -> None:
    """The step is skipped, the scale falls, and neither parameters nor state nor the rule's memory have moved.

    -1e30 is finite before it is scaled.
    """
    p = tensors(dtype=torch.float32)
    opt = OPTIMIZERS[kind](p, rule=RULES[rule]())
    scaler = scaler_at(2.0**32)
    scaled_step(opt, scaler, losses(p, 0), way)
    opt.zero_grad()
    before = everything(opt)
    task, general = losses(p, 1)
    pair = (task * bad[1], general) if bad[0] == "task" else (task, general * bad[1])
    scaled_step(opt, scaler, pair, way)
    assert scaler.get_scale() == 2.0**31
    opt.zero_grad()
    after = everything(opt)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert opt.conflict.steps.tolist() == [2, 2]
    scaled_step(opt, scaler, losses(p, 2), way)
    assert not torch.equal(p[0], before[0, 0, "value"])
    assert all(x.isfinite().all() for x in p)


@pytest.mark.parametrize("way", ["scaler=", "one call"])
def test_one_bad_element_of_many_is_seen(way: str) -> None:
    """A single infinity in the general gradient of one of two tensors."""
    p = tensors(dtype=torch.float32)
    opt = OPTIMIZERS["adamw"](p)
    scaler = scaler_at(1024.0)
    before = [x.detach().clone() for x in p]
    task, general = losses(p, 0)
    scaled_step(opt, scaler, (task, general + math.inf * p[1][3]), way)
    assert same(p, before)
    assert scaler.get_scale() == 512
    assert opt.conflict.non_finite.tolist() == [0, 1]


@pytest.mark.parametrize("bad", [math.inf, math.nan])
@pytest.mark.parametrize("kind", RATE_ONE)
def test_scaled_by_hand_a_bad_general_gradient_leaves_the_task_gradient(kind: str, bad: float) -> None:
    """A scaler that the optimizer does not know cannot be told; it is counted."""
    p = point()
    opt, scaler = RATE_ONE[kind]([p]), scaler_at(1024.0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            task, general = conflict_of(p)
            scaled_step(opt, scaler, (task, general * bad), "by hand")
    assert p.tolist() == [-3, 3]
    assert opt.conflict.non_finite.tolist() == [3]
    ours = [str(w.message) for w in caught if "scaler" in str(w.message)]
    assert len(ours) == 1
    assert "scaler=" in ours[0]


def test_scaled_by_hand_a_bad_task_gradient_skips_the_step() -> None:
    """This one is in .grad, where the scaler looks."""
    p = point()
    opt, scaler = pf.ProGradSGD([p], lr=1.0), scaler_at(1024.0)
    task, general = conflict_of(p)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scaled_step(opt, scaler, (task * math.inf, general), "by hand")
    assert p.tolist() == [0, 0]
    assert scaler.get_scale() == 512


def test_half_precision_gradients_are_compared_in_float32() -> None:
    """Norms of 16-bit gradients: their squares overflow (float16) or lose all digits in the storage's own dtype."""
    for dtype in (torch.float16, torch.bfloat16):
        p = nn.Parameter(torch.zeros(1000, dtype=dtype))
        opt = pf.ProGradSGD([p], lr=1.0)
        a = torch.full((1000,), 300.0, dtype=dtype)
        b = torch.full((1000,), -200.0, dtype=dtype)
        opt.backward((p * a).sum(), (p * b).sum())
        assert opt.conflict.conflicts.tolist() == [1]
        assert opt.conflict.cosine.tolist() == pytest.approx([-1.0])
        assert float(p.grad.abs().max()) <= 300 * torch.finfo(dtype).eps


# ---- row 13: a plain optimizer


PLAIN_STEPS: dict[str, Any] = {
    "adamw": (lambda p: pf.ProGradAdamW(p, lr=0.1), lambda p: torch.optim.AdamW(p, lr=0.1)),
    "adamw, fused": (
        lambda p: pf.ProGradAdamW(p, lr=0.1, fused=True),
        lambda p: torch.optim.AdamW(p, lr=0.1, fused=True),
    ),
    "sgd": (lambda p: pf.ProGradSGD(p, lr=0.1), lambda p: torch.optim.SGD(p, lr=0.1)),
    "sgd, fused": (lambda p: pf.ProGradSGD(p, lr=0.1, fused=True), lambda p: torch.optim.SGD(p, lr=0.1, fused=True)),
    "wrapper": (lambda p: pf.ProGrad(torch.optim.Adam(p, lr=0.1)), lambda p: torch.optim.Adam(p, lr=0.1)),
}


@pytest.mark.filterwarnings("ignore:.*never:UserWarning")  # that it never got a general gradient is the point
@pytest.mark.parametrize("kind", PLAIN_STEPS)
def test_a_plain_optimizer_under_a_scaler(kind: str) -> None:
    """A skipped step is not called, nor are its hooks; a fused one is called, and told, as torch.optim's."""
    calls: list[list[str]] = []
    results = []
    for make in PLAIN_STEPS[kind]:
        p = point()
        opt, scaler, seen = make([p]), scaler_at(1024.0), []
        opt.register_step_pre_hook(lambda *_, seen=seen: seen.append("pre"))
        opt.register_step_post_hook(lambda *_, seen=seen: seen.append("post"))
        for factor in (1.0, math.inf, 1.0):
            opt.zero_grad()
            scaler.scale((p[0] - p[1]) * factor).backward()
            scaler.step(opt)
            scaler.update()
            seen.append("next")
        calls.append(seen)
        results.append((p.tolist(), scaler.get_scale()))
    assert calls[0] == calls[1]
    assert results[0] == results[1]


def test_the_wrapper_of_a_fused_optimizer_unscales_once() -> None:
    """The scaler hands its scale to optimizers that unscale by themselves; a wrapper must not hide or double this."""
    for fused in (False, True):
        p = point()
        opt, scaler = pf.ProGrad(torch.optim.SGD([p], lr=1.0, fused=fused)), scaler_at(1024.0)
        for way in WAYS:
            scaled_step(opt, scaler, conflict_of(p), way)
        task, general = conflict_of(p)
        scaled_step(opt, scaler, (task, general * math.inf), "one call")
        assert p.tolist() == [-4, 0]
        assert scaler.get_scale() == 512


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_a_fused_optimizer_under_a_scaler(kind: str) -> None:
    """torch's fused kernels take the scale as an argument; the projected gradient is unscaled once."""
    settings = {"adamw": {"lr": 0.1, "weight_decay": 0.1}, "sgd": {"lr": 1.0, "momentum": 0.5}}[kind]
    make: Any = {"adamw": pf.ProGradAdamW, "sgd": pf.ProGradSGD}[kind]
    for way in WAYS:
        p, q = (tensors(dtype=torch.float32) for _ in range(2))
        opt, plain = make(p, **settings, fused=True), PLAIN[kind](q)
        scaler = scaler_at(1024.0)
        for step in range(3):
            scaled_step(opt, scaler, losses(p, step), way)
            for y, g in zip(q, reference.project(*gradients(q, step)), strict=True):
                y.grad = g
            plain.step()
        for x, y in zip(p, q, strict=True):
            assert_close(x, y, "trajectory", torch.float32)


@pytest.mark.parametrize("way", ["one call", "backward and step"])
def test_a_norm_that_overflows_where_the_gradient_does_not(way: str) -> None:
    """‖a‖² is infinite in float32, a is not: no step is skipped."""
    p = torch.nn.Parameter(torch.zeros(2))
    opt = pf.ProGradSGD([p], lr=1e-20)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    losses = 3e19 * p[0], p[1]
    if way == "one call":
        opt.backward_and_update(*losses, scaler=scaler)
    else:
        opt.backward(*losses, scaler=scaler)
        scaler.step(opt)
    scaler.update()
    assert p.tolist() == pytest.approx([-0.3, 0.0])
    assert scaler.get_scale() == 2.0
