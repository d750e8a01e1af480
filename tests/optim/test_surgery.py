"""Guards `param_groups` that are changed under way: units, sizes and counts follow, or one message says what misfits.

People replace, freeze, drop and add parameters between steps (a larger vocabulary, layers that thaw). What is expected
is torch.optim's optimizer with the same surgery, on gradients that the formula projects.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import prograd_fast as pf
from prograd_fast import reference
from prograd_fast.ops.common import SCOPES
from tests.optim.kinds import KINDS, OPTIMIZERS, PLAIN, RULES, WAYS, everything, refused, tensors
from tests.optim.support import gradients, inner, normal, same
from tests.slow import slow_but_for
from tests.tolerances import assert_close

SHAPES = ((3, 2), (4,), (2, 2))  # the first two in one group, the third in another


def build(make: Callable[..., Any], **settings: Any) -> Any:
    a, b, c = tensors(SHAPES)
    return make([{"params": [a, b]}, {"params": [c], "weight_decay": 0.0}], **settings)


def parameters(opt: Any) -> list[Tensor]:
    return list(dict.fromkeys(p for group in opt.param_groups for p in group["params"]))


def new(shape: tuple[int, ...]) -> nn.Parameter:
    return nn.Parameter(normal(shape, torch.float64, 77))


# ---- what people do


def replace_by_larger(opt: Any) -> None:
    opt.param_groups[0]["params"][0] = new((5, 2))


def replace_and_delete_state(opt: Any) -> None:
    opt.state.pop(opt.param_groups[0]["params"][0], None)
    opt.param_groups[0]["params"][0] = new((5, 2))


def drop_group(opt: Any) -> None:
    del opt.param_groups[1]


def drop_first_group(opt: Any) -> None:
    del opt.param_groups[0]


def append_group(opt: Any) -> None:
    opt.param_groups.append({**opt.param_groups[0], "params": [new((2, 3))]})


def assign_groups(opt: Any) -> None:
    first, second = opt.param_groups
    opt.param_groups = [{**first, "params": [*second["params"], new((3,))], "lr": 0.3}]


def swap_groups(opt: Any) -> None:
    opt.param_groups.reverse()


def append_parameter(opt: Any) -> None:
    opt.param_groups[1]["params"].append(new((6,)))


def drop_parameter(opt: Any) -> None:
    opt.param_groups[0]["params"].pop(0)


def assign_parameters(opt: Any) -> None:
    opt.param_groups[0]["params"] = [new((2,)), *opt.param_groups[0]["params"]]


def freeze_parameter(opt: Any) -> None:
    opt.param_groups[0]["params"][1].requires_grad_(False)


def add_by_method(opt: Any) -> None:
    opt.add_param_group({"params": [new((2, 5))], "lr": 0.2})


def empty_a_group(opt: Any) -> None:
    opt.param_groups[1]["params"] = []


SURGERIES = (
    replace_by_larger,
    replace_and_delete_state,
    drop_group,
    drop_first_group,
    append_group,
    assign_groups,
    swap_groups,
    append_parameter,
    drop_parameter,
    assign_parameters,
    freeze_parameter,
    add_by_method,
    empty_a_group,
)
surgeries = pytest.mark.parametrize("surgery", SURGERIES, ids=lambda surgery: surgery.__name__)


def update(opt: Any, step: int, way: str) -> None:
    params = [p for p in parameters(opt) if p.requires_grad]
    task, general = gradients(params, step)
    opt.zero_grad()
    WAYS[way](opt, inner(params, task), inner(params, general))


def update_plain(opt: Any, step: int, scope: Any) -> None:
    params = [p for p in parameters(opt) if p.requires_grad]
    opt.zero_grad()
    for p, g in zip(params, reference.project(*gradients(params, step), 0.8, scope), strict=True):
        p.grad = g
    opt.step()


@surgeries
@pytest.mark.parametrize("scope", slow_but_for(["tensor", "global"], SCOPES))
@pytest.mark.parametrize("way", slow_but_for(["composable", "one call"], WAYS))
@pytest.mark.parametrize("kind", slow_but_for(["adamw", "wrapper"], KINDS))
def test_surgery(kind: str, way: str, scope: Any, surgery: Callable[[Any], None]) -> None:
    """Row 11 of the table: it was an IndexError, a shape that was not expected, or counts of a group that is gone."""
    opt, plain = build(OPTIMIZERS[kind], lambda_=0.8, scope=scope), build(PLAIN[kind])
    everyone = {id(p): p for p in parameters(opt)}
    for step in range(4):
        if step == 2:
            surgery(opt)
            surgery(plain)
        here = {id(p) for p in parameters(opt) if p.requires_grad}
        gone = {i: p.detach().clone() for i, p in everyone.items() if i not in here}
        update(opt, step, way)
        update_plain(plain, step, scope)
        assert all(torch.equal(value, everyone[i]) for i, value in gone.items())
        for x, y in zip(parameters(opt), parameters(plain), strict=True):
            assert_close(x, y, "trajectory", torch.float64)
    assert opt.conflict.steps.numel() == opt.conflict.rate.numel() == units(opt, scope)


def units(opt: Any, scope: str) -> int:
    if scope == "global":
        return 1
    return sum(len(p) if scope == "row" else 1 for p in parameters(opt))


RULES_OF_UNITS = [rule for rule in RULES if rule not in ("AGEM", "Subspace")]  # whose unit is all parameters together
COUNTS = {
    "replace_by_larger": [2, 4, 4],
    "replace_and_delete_state": [2, 4, 4],
    "drop_group": [4, 4],
    "drop_first_group": [4],
    "append_group": [4, 4, 4, 2],
    "assign_groups": [4, 2],
    "swap_groups": [4, 4, 4],
    "append_parameter": [4, 4, 4, 2],
    "drop_parameter": [4, 4],
    "assign_parameters": [2, 4, 4, 4],
    "freeze_parameter": [4, 2, 4],
    "add_by_method": [4, 4, 4, 2],
    "empty_a_group": [4, 4],
}


@surgeries
@pytest.mark.parametrize("rule", slow_but_for(["Bloop", "GradVac"], RULES_OF_UNITS))
@pytest.mark.parametrize("kind", slow_but_for(["adamw"], KINDS))
def test_memory_and_counts_follow_the_parameter(kind: str, rule: str, surgery: Callable[[Any], None]) -> None:
    """Both ways agree; a parameter that is new begins anew, one that stays goes on as if nothing had happened."""
    opt, other, untouched = (build(OPTIMIZERS[kind], rule=RULES[rule]()) for _ in range(3))
    stay = parameters(untouched)
    identities = {id(p): i for i, p in enumerate(parameters(opt))}
    for step in range(4):
        if step == 2:
            surgery(opt)
            surgery(other)
        given(opt, identities, step, "composable")
        given(
            other,
            {id(p): identities.get(id(q)) for p, q in zip(parameters(other), parameters(opt), strict=True)},
            step,
            "one call",
        )
        given(untouched, {id(p): i for i, p in enumerate(stay)}, step, "composable")
    assert opt.conflict.steps.tolist() == other.conflict.steps.tolist() == COUNTS[surgery.__name__]
    for p, q in zip(parameters(opt), parameters(other), strict=True):
        assert_close(p, q, "trajectory", torch.float64)
    if surgery is assign_groups:  # with another rate
        return
    for p in parameters(opt):
        if id(p) in identities and p.requires_grad:
            assert_close(p, stay[identities[id(p)]], "trajectory", torch.float64)


def given(opt: Any, identities: dict[int, Any], step: int, way: str) -> None:
    """An update with gradients that depend on the parameter, not on its place."""
    params = [p for p in parameters(opt) if p.requires_grad]
    pairs = []
    for p in params:
        seed = 100 * step + 10 * (9 if identities.get(id(p)) is None else identities[id(p)])
        pairs.append([normal(p.shape, p.dtype, seed + k) for k in range(2)])
    opt.zero_grad()
    WAYS[way](opt, *(inner(params, [pair[k] for pair in pairs]) for k in range(2)))


@surgeries
@pytest.mark.parametrize("closing", ["backward", "backward_and_update"])
def test_surgery_within_a_block(closing: str, surgery: Callable[[Any], None]) -> None:
    """Sums are of parameters: those of one that is gone have no say, one that is new has none."""
    opt, plain = build(OPTIMIZERS["sgd"], scope="global"), build(PLAIN["sgd"])
    first = parameters(opt)
    sums = gradients(first, 0)
    with opt.accumulate():
        opt.backward(*(inner(first, side) for side in sums))
    held = [dict(zip(map(id, first), side, strict=True)) for side in sums]
    surgery(opt)
    surgery(plain)
    params = [p for p in parameters(opt) if p.requires_grad]
    sides = gradients(params, 1)
    getattr(opt, closing)(*(inner(params, side) for side in sides))
    if closing == "backward":
        opt.step()
    a, b = (
        [g + h.get(id(p), 0.0) for p, g in zip(params, side, strict=True)] for side, h in zip(sides, held, strict=True)
    )
    for p, g in zip(
        [p for p in parameters(plain) if p.requires_grad], reference.project(a, b, 1.0, "global"), strict=True
    ):
        p.grad = g
    plain.step()
    for x, y in zip(parameters(opt), parameters(plain), strict=True):
        assert_close(x, y, "formula", torch.float64)


# ---- another shape behind the same parameter


def values(opt: Any) -> list[Tensor]:
    """All that a step moves; `backward` moves .grad and what GradVac keeps."""
    return [value for (_, _, name), value in everything(opt).items() if name not in ("grad", "target_cosine")]


@pytest.mark.parametrize("rule", ["none", "PCGrad", "GradVac", "Bloop"])
@pytest.mark.parametrize("scope", slow_but_for(["tensor", "row"], SCOPES))
@pytest.mark.parametrize("way", slow_but_for(["composable", "one call"], WAYS))
@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_data_of_another_shape(kind: str, way: str, scope: Any, rule: str) -> None:
    """The state does not fit: one message that names parameter, shapes and remedy, before anything has moved."""
    opt = build(OPTIMIZERS[kind], rule=RULES[rule](), scope=scope)
    update(opt, 0, way)
    p = parameters(opt)[0]
    opt.zero_grad()
    p.data = torch.ones(5, 2, dtype=torch.float64)
    before = values(opt)
    with pytest.raises(RuntimeError, match=r"(parameter 0 of group 0|task_average|target_cosine).*expected shape.*got"):
        update(opt, 1, way)
    assert same(values(opt), before)
    opt.zero_grad()
    opt.state.pop(p)  # the remedy
    update(opt, 1, way)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("rule", ["none", "PCGrad"])
def test_data_of_another_shape_without_state(rule: str, way: str) -> None:
    """SGD without momentum has nothing that could misfit, and steps as torch.optim."""
    opt = build(pf.ProGradSGD, lr=1.0, rule=RULES[rule]())
    update(opt, 0, way)
    p = parameters(opt)[0]
    p.data = torch.ones(5, 2, dtype=torch.float64)
    p.grad = None
    update(opt, 1, way)
    assert p.shape == (5, 2)
    assert not torch.equal(p, torch.ones(5, 2, dtype=torch.float64))
    assert opt.conflict.steps.tolist() == [2, 2, 2]


def test_subspace_says_that_its_basis_is_of_other_parameters() -> None:
    """The number of all elements is the rule's; after surgery it says so before anything moves."""
    opt = build(OPTIMIZERS["adamw"], rule=pf.rules.Subspace(torch.eye(14, dtype=torch.float64)[:3]))
    update(opt, 0, "composable")
    opt.zero_grad()
    append_group(opt)
    for way in WAYS:
        with refused(opt, ValueError, "basis: expected 20 columns"):
            update(opt, 1, way)


@pytest.mark.parametrize("kind", KINDS)
def test_assigned_state_and_groups_are_the_optimizers(kind: str) -> None:
    """As accelerate assigns them through its own optimizer."""
    opt, other = build(OPTIMIZERS[kind]), build(OPTIMIZERS[kind])
    update(opt, 0, "composable")
    other.param_groups, other.state = opt.param_groups, opt.state
    before = everything(opt)
    update(other, 1, "composable")
    assert not same(before.values(), everything(opt).values())
    assert same(everything(other).values(), everything(opt).values())
