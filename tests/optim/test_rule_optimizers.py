"""Guards optimizers with other rules than ProGrad's: their steps, their memory, and checkpoints of it."""

import copy

import pytest
import torch

import prograd_fast as pf
from prograd_fast import reference, rules
from tests.tolerances import assert_close

SHAPES = [(6, 4), (5,), ()]  # rows to test apart, a vector, one number
BASIS = torch.linalg.qr(torch.randn(30, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(3)))[0].mT
RULES = [
    rules.ProGrad(0.7),
    rules.AGEM(),
    rules.PCGrad(),
    rules.GradVac(0.3),
    rules.CAGrad(0.4),
    rules.Bloop(0.8, 0.5),
    rules.Subspace(BASIS),
]
OPTIMIZERS = {
    "adamw": lambda p, **k: pf.ProGradAdamW(p, lr=0.03, weight_decay=0.2, **k),
    "sgd": lambda p, **k: pf.ProGradSGD(p, lr=0.03, momentum=0.8, **k),
    "wrapper": lambda p, **k: pf.ProGrad(torch.optim.RMSprop(p, lr=0.01), **k),
}
PLAIN = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.03, weight_decay=0.2),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.03, momentum=0.8),
    "wrapper": lambda p: torch.optim.RMSprop(p, lr=0.01),
}


def parameters():
    g = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(s, generator=g, dtype=torch.float64)) for s in SHAPES]


def gradients(step):
    g = torch.Generator().manual_seed(10 + step)
    return [[torch.randn(s, generator=g, dtype=torch.float64) for s in SHAPES] for _ in range(2)]


def step_with(opt, params, step):
    a, b = gradients(step)
    opt.zero_grad()
    opt.backward(
        sum((p * x).sum() for p, x in zip(params, a, strict=True)),
        sum((p * x).sum() for p, x in zip(params, b, strict=True)),
    )
    opt.step()


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
@pytest.mark.parametrize(
    ("name", "scope"), [("adamw", "tensor"), ("adamw", "row"), ("adamw", "global"), ("sgd", "row"), ("wrapper", "row")]
)
def test_steps_on_what_the_rule_says(rule, scope, name):
    """The rule by hand, step by step with its own state, in front of torch's optimizer."""
    p, q = parameters(), parameters()
    opt, plain = OPTIMIZERS[name](p, rule=rule, scope=scope), PLAIN[name](q)
    state, states = {}, [{} for _ in q]
    for step in range(4):
        step_with(opt, p, step)
        a, b = rule.prepare(*gradients(step), states, scope)
        coefficients = rule(reference.gram(a, b, scope), state)
        parts = reference.split_units(coefficients, a, scope)
        for x, u, v, c in zip(q, a, b, parts, strict=True):
            x.grad = reference.combine(u, v, c)
        plain.step()
        for x, y in zip(p, q, strict=True):
            # a single element in conflict is a - a = 0, and AdamW divides the rounding of that by its own root
            assert_close(x, y, "trajectory", torch.float64)


@pytest.mark.parametrize("rule", [rules.GradVac(0.3), rules.Bloop(0.8, 0.5)], ids=["GradVac", "Bloop"])
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("how", ["state_dict", "deepcopy"])
def test_what_a_rule_remembers_is_in_the_checkpoint(rule, name, how):
    p = parameters()
    opt = OPTIMIZERS[name](p, rule=rule)
    for step in range(3):
        step_with(opt, p, step)
    if how == "deepcopy":
        q, twin = copy.deepcopy((p, opt))
    else:
        q = [torch.nn.Parameter(x.detach().clone()) for x in p]
        twin = OPTIMIZERS[name](q, rule=rule)
        twin.load_state_dict(copy.deepcopy(opt.state_dict()))
        PLAIN[name](parameters()).load_state_dict(opt.state_dict())  # torch.optim does not mind what the rule keeps
    for step in range(3, 6):
        step_with(opt, p, step)
        step_with(twin, q, step)
    assert all(torch.equal(x, y) for x, y in zip(p, q, strict=True))


def test_a_rule_without_memory_leaves_the_checkpoint_alone():
    p = parameters()
    opt = OPTIMIZERS["adamw"](p, rule=rules.PCGrad())
    step_with(opt, p, 0)
    assert opt.state_dict()["state"][0].keys() == {"step", "exp_avg", "exp_avg_sq"}
    assert "lambda_" not in opt.param_groups[0]


def test_units_without_gradient_keep_their_memory():
    """GradVac's target cosine belongs to its tensor, also when another tensor has no gradient at a step."""
    p, q = parameters(), parameters()[:1]
    opt = pf.ProGradSGD(p, lr=0.1, rule=rules.GradVac(0.5))
    alone = pf.ProGradSGD(q, lr=0.1, rule=rules.GradVac(0.5))
    for step in range(4):
        (a, *_), (b, *_) = gradients(step)
        for o, x in ((opt, p[0]), (alone, q[0])):
            o.zero_grad()
            o.backward((x * a).sum(), (x * b).sum())
            o.step()
    assert torch.equal(p[0], q[0])


def test_a_new_group_begins_its_own_memory():
    """GradVac's targets of the known tensors stay, that of a new one begins at zero."""
    p, q = parameters(), parameters()
    opt = pf.ProGradSGD(p[:2], lr=0.1, rule=rules.GradVac(0.5))
    alone = pf.ProGradSGD(q[2:], lr=0.1, rule=rules.GradVac(0.5))
    for step in range(2):
        a, b = gradients(step)
        opt.zero_grad()
        opt.backward((p[0] * a[0]).sum() + (p[1] * a[1]).sum(), (p[0] * b[0]).sum() + (p[1] * b[1]).sum())
        opt.step()
    opt.add_param_group({"params": p[2:]})
    for step in range(2, 4):
        step_with(opt, p, step)
        a, b = gradients(step)
        alone.zero_grad()
        alone.backward(q[2] * a[2], q[2] * b[2])
        alone.step()
    assert torch.equal(p[2], q[2])


def test_subspace_needs_no_general_gradient():
    p = parameters()
    before = torch.cat([x.detach().flatten() for x in p])
    opt = pf.ProGradSGD(p, lr=0.1, rule=rules.Subspace(BASIS))
    opt.backward(sum(x.square().sum() for x in p))
    opt.step()
    moved = torch.cat([x.detach().flatten() for x in p]) - before
    assert_close(BASIS.mT @ (BASIS @ moved), moved, "formula", torch.float64)
    assert moved.abs().max() > 0


def test_bad_rules():
    with pytest.raises(TypeError, match=r"rule: expected an object of prograd_fast\.rules, got str"):
        pf.ProGradAdamW(parameters(), rule="pcgrad")
    with pytest.raises(ValueError, match="lambda_: expected it in the rule"):
        pf.ProGradAdamW(parameters(), rule=rules.ProGrad(0.5), lambda_=0.5)
