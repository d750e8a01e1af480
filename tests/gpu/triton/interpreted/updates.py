"""Guards the fused steps of AdamW and SGD on Triton, against torch.optim in float64."""

import math

import pytest
import torch

from tests.gpu.triton.support import SCOPES, draw, expected_entries, expected_projection, ops, prograd, tensors, units
from tests.ops import floors
from tests.ops.support import accumulation
from tests.tolerances import assert_close

# no default of a step, so that nothing is tested only where it vanishes
ADAMW = {"lr": 0.01, "betas": (0.8, 0.99), "eps": 1e-6, "weight_decay": 0.1}
SGD = {"lr": 0.01, "momentum": 0.8, "weight_decay": 0.1}
LAMBDA = 0.7


def adamw(params, a, b, state, scope, entries, coefficients=None, lr_tensor=None, maximize=False, inf=None, floor=0.0):
    ops.project_adamw_(
        params, a, b, *state, entries, coefficients, lr_tensor, math.nan if lr_tensor is not None else ADAMW["lr"],
        *ADAMW["betas"], ADAMW["eps"], ADAMW["weight_decay"], LAMBDA, floor, SCOPES[scope], bool(state[2]),
        maximize, inf,
    )  # fmt: skip


def adamw_state(params, moments, amsgrad):
    zeros = [[torch.zeros_like(p, dtype=moments) for p in params] for _ in range(3)]
    return [*zeros[:2], zeros[2] if amsgrad else [], [torch.zeros(()) for _ in params]]


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize(
    ("dtype", "moments", "amsgrad", "maximize"),
    [
        (torch.float64, torch.float64, True, True),
        (torch.float32, torch.float32, False, False),
        (torch.bfloat16, torch.float32, True, False),
    ],
)
def test_adamw(shapes, scope, dtype, moments, amsgrad, maximize):
    """Two steps against torch.optim.AdamW in float64 on the projected gradient; the same lr as number and as tensor."""
    params = tensors(shapes, dtype, seed=5)
    state = adamw_state(params, moments, amsgrad)
    twins = [p.double().clone().requires_grad_() for p in params]
    optimizer = torch.optim.AdamW(twins, **ADAMW, amsgrad=amsgrad, maximize=maximize)
    accumulated = accumulation(dtype)
    for step in range(2):
        a, b = tensors(shapes, dtype, seed=20 + step), tensors(shapes, dtype, seed=30 + step)
        expected = expected_entries(a, b, scope)
        entries = torch.full(expected.shape, 7.0, dtype=accumulated)
        lr_tensor = torch.tensor(ADAMW["lr"], dtype=torch.float64) if step else None
        adamw(params, a, b, state, scope, entries, lr_tensor=lr_tensor, maximize=maximize)
        assert_close(entries, expected, "formula", accumulated)
        for p, g in zip(twins, expected_projection(a, b, scope, prograd(expected, LAMBDA)), strict=True):
            p.grad = g
        optimizer.step()
        assert [float(s) for s in state[3]] == [step + 1] * len(params)
    for i, (p, twin) in enumerate(zip(params, twins, strict=True)):
        assert_close(p, twin, "formula", dtype, scale=twin.detach().abs().clamp(min=1))
        for actual, name in zip(state[: 2 + amsgrad], ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"), strict=False):
            assert_close(actual[i], optimizer.state[twin][name], "formula", moments)


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize(
    ("dtype", "momentum", "nesterov", "maximize"),
    [
        (torch.float64, True, True, True),
        (torch.float32, True, False, False),
        (torch.bfloat16, False, False, False),
    ],
)
def test_sgd(shapes, scope, dtype, momentum, nesterov, maximize):
    """Two steps against torch.optim.SGD in float64, the first of which starts the momentum."""
    params = tensors(shapes, dtype, seed=5)
    buffers = [torch.full_like(p, math.nan) for p in params] if momentum else []  # not read at the first step
    twins = [p.double().clone().requires_grad_() for p in params]
    options = SGD | {"momentum": SGD["momentum"] if momentum else 0.0}
    dampening = 0.3 if momentum and not nesterov else 0.0
    optimizer = torch.optim.SGD(twins, **options, dampening=dampening, nesterov=nesterov, maximize=maximize)
    accumulated = accumulation(dtype)
    for step in range(2):
        a, b = tensors(shapes, dtype, seed=20 + step), tensors(shapes, dtype, seed=30 + step)
        expected = expected_entries(a, b, scope)
        entries = torch.full(expected.shape, 7.0, dtype=accumulated)
        ops.project_sgd_(
            params, a, b, buffers, entries, None, None, options["lr"], options["momentum"], dampening,
            options["weight_decay"], LAMBDA, 0.0, SCOPES[scope], nesterov, maximize, step == 0, None,
        )  # fmt: skip
        assert_close(entries, expected, "formula", accumulated)
        for p, g in zip(twins, expected_projection(a, b, scope, prograd(expected, LAMBDA)), strict=True):
            p.grad = g
        optimizer.step()
    for i, (p, twin) in enumerate(zip(params, twins, strict=True)):
        assert_close(p, twin, "formula", dtype, scale=twin.detach().abs().clamp(min=1))
        if momentum:
            assert_close(buffers[i], optimizer.state[twin]["momentum_buffer"], "formula", dtype)


@pytest.mark.parametrize("scope", SCOPES)
def test_a_rules_coefficients(shapes, scope):
    """With coefficients the entries are left alone, steps are counted, and g = alpha·a + beta·b goes to the update."""
    params, a, b = (tensors(shapes, torch.float32, seed=s) for s in (5, 6, 7))
    state = adamw_state(params, torch.float32, amsgrad=False)
    buffers = [torch.zeros_like(p) for p in params]
    sgd_params = [p.clone() for p in params]
    before = [p.double() for p in params]
    n_units = len(units(a, scope))
    coefficients, entries = draw(n_units, 2, dtype=torch.float32), torch.full((n_units, 3), 7.0)
    adamw(params, a, b, state, scope, entries, coefficients)
    ops.project_sgd_(
        sgd_params, a, b, buffers, entries, coefficients, None, 0.5, 0.9, 0.0, 0.0, LAMBDA, 0.0, SCOPES[scope], False,
        False, True, None,
    )  # fmt: skip
    assert (entries == 7).all()
    assert all(s == 1 for s in state[3])
    for i, g in enumerate(expected_projection(a, b, scope, coefficients)):
        assert_close(state[0][i], (1 - ADAMW["betas"][0]) * g, "formula", torch.float32)
        assert_close(buffers[i], g, "formula", torch.float32)
        assert_close(sgd_params[i], before[i] - 0.5 * g, "formula", torch.float32)


def test_found_inf(shapes):
    """Above 0, nothing changes but the entries."""
    params, a, b = (tensors(shapes, torch.float32, seed=s) for s in (5, 6, 7))
    state = adamw_state(params, torch.float32, amsgrad=True)
    buffers = [torch.ones_like(p) for p in params]
    kept = [[t.clone() for t in group] for group in (params, *state, buffers)]
    entries = torch.full((len(params), 3), 7.0)
    adamw(params, a, b, state, "tensor", entries, inf=torch.ones(()))
    assert_close(entries, expected_entries(a, b, "tensor"), "formula", torch.float32)
    ops.project_sgd_(
        params, a, b, buffers, entries, None, None, 0.5, 0.9, 0.0, 0.1, LAMBDA, 0.0, 0, False, False, False,
        torch.ones(()),
    )  # fmt: skip
    for group, copies in zip((params, *state, buffers), kept, strict=True):
        assert all(torch.equal(t, c) for t, c in zip(group, copies, strict=True))


@pytest.mark.parametrize("shapes", [[(2500,)], [(130, 20), (9, 3)]], ids=["single numbers", "short"])
def test_many_rows(shapes):
    """Tiles of 1024 rows, and of 32: several programs of a tensor, the last with fewer rows; steps are counted once."""
    params, a, b = (tensors(shapes, torch.float32, seed=s) for s in (5, 6, 7))
    state, buffers = adamw_state(params, torch.float32, amsgrad=False), [torch.zeros_like(p) for p in params]
    expected = expected_entries(a, b, "row")
    entries, of_sgd, of_gram = (torch.full(expected.shape, 7.0) for _ in range(3))
    adamw(params, a, b, state, "row", entries)
    projected = [torch.zeros_like(x) for x in a]
    ops.project_out(a, b, None, LAMBDA, 0.0, SCOPES["row"], entries=of_gram, projected=projected)
    ops.project_sgd_(
        params, a, b, buffers, of_sgd, None, None, 0.5, 0.9, 0.0, 0.0, LAMBDA, 0.0, SCOPES["row"], False, False, True,
        None,
    )  # fmt: skip
    assert_close(entries, expected, "formula", torch.float32)
    assert torch.equal(entries, of_gram)
    assert torch.equal(entries, of_sgd)
    assert all(s == 1 for s in state[3])
    assert all(torch.equal(x, y) for x, y in zip(projected, buffers, strict=True))
    for i, g in enumerate(expected_projection(a, b, "row", prograd(expected, LAMBDA))):
        assert_close(projected[i], g, "formula", torch.float32)
        assert_close(state[0][i], (1 - ADAMW["betas"][0]) * g, "formula", torch.float32)


def by_sgd(around):
    """A step that leaves the projected gradients, bit for bit."""
    params = [torch.zeros_like(a) for a in around.task]
    units = 1 if around.scope == 2 else len(around.absent)
    entries = torch.empty(units, 3, dtype=accumulation(params[0].dtype))
    ops.project_sgd_(
        params, around.task, around.general, [], entries, None, None, 1.0, 0.0, 0.0, 0.0, 1.0, around.floor,
        around.scope, False, True, False, None,
    )  # fmt: skip
    return params


def by_adamw(around):
    params, m, v = ([torch.zeros_like(a) for a in around.task] for _ in range(3))
    units = 1 if around.scope == 2 else len(around.absent)
    entries = torch.empty(units, 3, dtype=accumulation(params[0].dtype))
    ops.project_adamw_(
        params, around.task, around.general, m, v, [], [torch.zeros(()) for _ in m], entries, None, None, 1.0,
        0.0, 0.9, 1e-8, 0.0, 1.0, around.floor, around.scope, False, False, None,
    )  # fmt: skip
    return m


@pytest.mark.parametrize(
    ("dtype", "projected"), [(torch.float64, by_sgd), (torch.float32, by_adamw), (torch.bfloat16, by_sgd)]
)
@pytest.mark.parametrize("scope", SCOPES)
def test_noise_floor(shapes, dtype, scope, projected):
    """One launch and two; units just below, at and just above the floor."""
    few_rows = [shape for shape in shapes if shape and 0 < shape[0] < 8 and math.prod(shape)]
    for around in floors.arounds(dtype, SCOPES[scope], few_rows):
        floors.check(around, projected)


@pytest.mark.parametrize("projected", [by_sgd, by_adamw])
def test_noise_floor_of_rows_and_extremes(projected):
    for around in (floors.random_rows(torch.float32, 30), *floors.extremes()):
        floors.check(around, projected)


@pytest.mark.parametrize("bad", [0.0, 1e-30, math.nan, math.inf])  # 1e-30: ‖b‖² vanishes in float32
def test_unusable_general_gradient(bad):
    """A zero, vanishing or non-finite general gradient leaves the plain task gradient."""
    a = draw(9, dtype=torch.float32)
    b = torch.zeros(9)
    b[4] = -bad if a[4] > 0 else bad
    buffers, entries = [torch.zeros(9)], torch.empty(1, 3)
    ops.project_sgd_(
        [torch.zeros(9)], [a], [b], buffers, entries, None, None, 1.0, 0.9, 0.0, 0.0, 1.0, 0.0, 0, False, False, True,
        None,
    )  # fmt: skip
    assert torch.equal(buffers[0], a)


def test_steps_on_another_device_are_refused():
    """They would be read as addresses of this one."""
    zeros = [torch.zeros(3)]
    with pytest.raises(ValueError, match=r"steps\[0\]: expected device cpu as for the others, got meta"):
        ops.project_adamw_(
            zeros, zeros, zeros, zeros, zeros, [], [torch.zeros((), device="meta")], torch.empty(1, 3), None, None,
            0.1, 0.9, 0.999, 1e-8, 0.0, 1.0, 0.0, 0, False, False, None,
        )  # fmt: skip


def test_no_tensors():
    entries = torch.full((1, 3), 7.0)
    ops.gram_out([], [], 2, entries=entries)
    assert torch.equal(entries, torch.zeros(1, 3))
    entries.fill_(7.0)
    ops.project_out([], [], None, 1.0, 0.0, 2, entries=entries, projected=[])
    assert torch.equal(entries, torch.zeros(1, 3))
    adamw([], [], [], [[], [], [], []], "tensor", torch.zeros(0, 3))
