"""Guards drop-in use: without a general gradient the optimizers are torch.optim's, with one its features still work."""

import copy
import io
import math
import pickle

import pytest
import torch

import prograd_fast as pf
from prograd_fast import reference
from tests.optim.support import same
from tests.tolerances import assert_close

# seen in 2.6 and no longer in 2.10: torch.optim.SGD(fused=True) reads momentum of bfloat16 that nobody has written, and
# no update takes a rate of shape (1,) for a 0-d parameter
OLD_UPDATES = tuple(map(int, torch.__version__.split(".")[:2])) < (2, 10)

ADAMW = {"lr": 0.03, "betas": (0.8, 0.97), "eps": 1e-6, "weight_decay": 0.2}
SGD = {"lr": 0.03, "momentum": 0.8, "weight_decay": 0.2}
SHAPES = [(16, 8), (5,), (), (3, 2, 2)]  # a context, a vector, a 0-d tensor, a higher rank


def parameters(shapes=SHAPES, dtype=torch.float32, seed=0):
    g = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(s, generator=g, dtype=torch.float64).to(dtype)) for s in shapes]


def losses(params, step):
    """Two losses that conflict for some tensors at some steps and not for others."""
    task = sum((p.double() * math.cos(3 * i + step)).sum() + p.double().square().sum() for i, p in enumerate(params))
    general = sum(((p.double() - 0.3 * i).square() * math.sin(step + 2 * i)).sum() for i, p in enumerate(params))
    return task, general


def run_plain(opt, params, steps=5):
    for step in range(steps):
        opt.zero_grad()
        losses(params, step)[0].backward()
        opt.step()


def run_both(opt, params, start=0, steps=5):
    for step in range(start, start + steps):
        opt.zero_grad()
        opt.backward(*losses(params, step))
        opt.step()


def make(name, params, **change):
    if name == "adamw":
        return pf.ProGradAdamW(params, **(ADAMW | change))
    if name == "sgd":
        return pf.ProGradSGD(params, **(SGD | change))
    return pf.ProGrad(torch.optim.RMSprop(params, lr=0.01, momentum=0.5), **change)


NAMES = ["adamw", "sgd", "wrapper"]
plain_use = pytest.mark.filterwarnings("ignore:.*never got a general gradient:UserWarning")  # which is said once

# ---- without a general gradient


PATHS = [{}, {"foreach": True}, {"fused": True}, {"foreach": False}]
VARIANTS = [
    (pf.ProGradAdamW, torch.optim.AdamW, ADAMW),
    (pf.ProGradAdamW, torch.optim.AdamW, ADAMW | {"amsgrad": True, "maximize": True}),
    (pf.ProGradAdamW, torch.optim.AdamW, ADAMW | {"lr": torch.tensor(0.02)}),
    (pf.ProGradSGD, torch.optim.SGD, SGD),
    (pf.ProGradSGD, torch.optim.SGD, SGD | {"nesterov": True}),
    (pf.ProGradSGD, torch.optim.SGD, SGD | {"dampening": 0.1, "maximize": True}),
]


@plain_use
@pytest.mark.parametrize("path", PATHS, ids=str)
@pytest.mark.parametrize(("own", "theirs", "settings"), VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_plain_use_is_torch_bit_for_bit(own, theirs, settings, path, dtype):
    if OLD_UPDATES and theirs is torch.optim.SGD and path.get("fused") and dtype == torch.bfloat16:
        pytest.skip("this PyTorch's own update is not the same twice")
    if path.get("foreach") and isinstance(settings["lr"], torch.Tensor):
        with pytest.raises(ValueError, match="lr as a Tensor is not supported"):  # as torch.optim.AdamW itself
            own(parameters(), **settings, **path)
        return
    p, q = parameters(dtype=dtype), parameters(dtype=dtype)
    mine, other = own(p, **settings, **path), theirs(q, **settings, **path)
    run_plain(mine, p)
    run_plain(other, q)
    assert same(p, q)
    a, b = mine.state_dict(), other.state_dict()
    assert a["param_groups"] == [group | {"lambda_": 1.0} for group in b["param_groups"]]
    assert a["state"].keys() == b["state"].keys()
    for i in a["state"]:
        assert a["state"][i].keys() == b["state"][i].keys()
        assert same(a["state"][i].values(), b["state"][i].values())


@plain_use
@pytest.mark.parametrize(("own", "theirs", "settings"), [VARIANTS[0], VARIANTS[1], VARIANTS[3]])
def test_checkpoints_go_either_way(own, theirs, settings):
    """Three steps with one class, save, load into the other, three more: the same as six steps with one."""
    expected = parameters()
    opt = theirs(expected, **settings)
    run_plain(opt, expected, 3)
    run_plain(opt, expected, 3)
    for first, second in ((own, theirs), (theirs, own)):
        p = parameters()
        opt = first(p, **settings)
        run_plain(opt, p, 3)
        file = io.BytesIO()
        torch.save(opt.state_dict(), file)
        file.seek(0)
        opt = second(p, lr=9.0)  # the checkpoint's settings win, as in torch.optim
        opt.load_state_dict(torch.load(file, weights_only=True))
        run_plain(opt, p, 3)
        assert same(p, expected)


def test_a_group_keeps_its_lambda_when_a_plain_checkpoint_is_loaded():
    p = parameters()
    groups = [{"params": p[:2], "lambda_": 0.25}, {"params": p[2:]}]
    for opt in (pf.ProGradAdamW(groups), pf.ProGrad(torch.optim.AdamW(groups))):
        opt.load_state_dict(torch.optim.AdamW([{"params": p[:2]}, {"params": p[2:]}]).state_dict())
        assert [group["lambda_"] for group in opt.param_groups] == [0.25, 1.0]


# ---- with both gradients, against the formulas


@pytest.mark.parametrize("path", [{}, {"fused": True}], ids=str)
@pytest.mark.parametrize("scope", ["tensor", "row", "global"])
@pytest.mark.parametrize("change", [{}, {"amsgrad": True}, {"maximize": True}], ids=str)
def test_adamw_against_reference(scope, path, change):
    p, q = parameters(dtype=torch.float64), parameters(dtype=torch.float64)
    opt = pf.ProGradAdamW(p, **ADAMW, **path, **change, lambda_=0.8, scope=scope)
    m, v, v_max = ([torch.zeros_like(x) for x in q] for _ in range(3))
    for step in range(5):
        opt.zero_grad()
        opt.backward(*losses(p, step))
        opt.step()
        a, b = (torch.autograd.grad(loss, q) for loss in losses(q, step))
        amsgrad = v_max if change.get("amsgrad") else None
        maximize = change.get("maximize", False)
        reference.project_adamw_(
            [x.detach() for x in q], a, b, m, v, step + 1, **ADAMW, lambda_=0.8, scope=scope, maximize=maximize,
            max_exp_avg_sqs=amsgrad,
        )  # fmt: skip
        for x, y in zip(p, q, strict=True):
            assert_close(x, y, "formula", torch.float64)
    assert 0 < int(opt.conflict.conflicts.sum()) < int(opt.conflict.steps.sum())  # both cases were met


@pytest.mark.parametrize("scope", ["tensor", "row", "global"])
@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_against_reference(scope, nesterov):
    p, q = parameters(dtype=torch.float64), parameters(dtype=torch.float64)
    opt = pf.ProGradSGD(p, **SGD, nesterov=nesterov, lambda_=0.8, scope=scope)
    buffers = [torch.zeros_like(x) for x in q]
    for step in range(5):
        opt.zero_grad()
        opt.backward(*losses(p, step))
        opt.step()
        a, b = (torch.autograd.grad(loss, q) for loss in losses(q, step))
        reference.project_sgd_(
            [x.detach() for x in q], a, b, buffers, first=step == 0, **SGD, nesterov=nesterov, lambda_=0.8, scope=scope
        )
        for x, y in zip(p, q, strict=True):
            assert_close(x, y, "formula", torch.float64)


@pytest.mark.parametrize("factory", [torch.optim.RMSprop, torch.optim.Adagrad, torch.optim.NAdam, torch.optim.Rprop])
def test_wrapper_is_the_optimizer_on_the_projected_gradient(factory):
    p, q = parameters(dtype=torch.float64), parameters(dtype=torch.float64)
    opt, plain = pf.ProGrad(factory(p, lr=0.01), lambda_=0.7), factory(q, lr=0.01)
    for step in range(4):
        opt.zero_grad()
        opt.backward(*losses(p, step))
        opt.step()
        a, b = (torch.autograd.grad(loss, q) for loss in losses(q, step))
        for x, g in zip(q, reference.project(a, b, 0.7), strict=True):
            x.grad = g
        plain.step()
        for x, y in zip(p, q, strict=True):
            assert_close(x, y, "formula", torch.float64)


def test_lambda_per_group():
    """λ = 0 for one group leaves it as plain torch would, while the other is projected."""
    p = parameters([(4,), (4,)])
    opt = pf.ProGradSGD([{"params": [p[0]], "lambda_": 0.0}, {"params": [p[1]]}], lr=0.1)
    pull = torch.tensor([1.0, -1.0, 0.0, 0.0])
    opt.backward((p[0] * pull).sum() + (p[1] * pull).sum(), (p[0][1] + p[1][1]))
    assert torch.equal(p[0].grad, pull)
    assert torch.equal(p[1].grad, torch.tensor([1.0, 0.0, 0.0, 0.0]))


# ---- the rest of torch.optim


@pytest.mark.parametrize("name", NAMES)
def test_micro_batches_equal_one_batch(name):
    p, q = parameters(dtype=torch.float64), parameters(dtype=torch.float64)
    opt = make(name, p)
    with opt.accumulate():
        for step in range(2):
            opt.backward(*losses(p, step))
    opt.backward(*losses(p, 2))
    opt.step()
    other = make(name, q)
    other.backward(*(sum(parts) for parts in zip(*(losses(q, step) for step in range(3)), strict=True)))
    other.step()
    for x, y in zip(p, q, strict=True):
        assert_close(x, y, "trajectory", torch.float64)


@pytest.mark.parametrize("name", NAMES)
def test_calls_in_a_row_add_their_own_projections(name):
    p, q = parameters(dtype=torch.float64), parameters(dtype=torch.float64)
    opt, other = make(name, p), make(name, q)
    for step in (0, 2):
        opt.backward(*losses(p, step))
    expected = [torch.zeros_like(x) for x in q]
    for step in (0, 2):
        other.zero_grad()
        other.backward(*losses(q, step))
        expected = [g + x.grad for g, x in zip(expected, q, strict=True)]
    for x, g in zip(p, expected, strict=True):
        assert_close(x.grad, g, "formula", torch.float64)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("set_to_none", [True, False])
def test_zero_grad_forgets_everything(name, set_to_none):
    p, q = parameters(), parameters()
    opt, other = make(name, p), make(name, q)
    opt.backward(*losses(p, 3))
    with opt.accumulate():
        opt.backward(*losses(p, 1))
    opt.zero_grad(set_to_none=set_to_none)
    assert all((x.grad is None) if set_to_none else not x.grad.any() for x in p)
    opt.backward(*losses(p, 0))
    other.backward(*losses(q, 0))
    opt.step()
    other.step()
    assert same(p, q)


@pytest.mark.parametrize("default", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("fused", [False, True])
def test_step_count_has_torchs_dtype(default, fused):
    before = torch.get_default_dtype()
    torch.set_default_dtype(default)
    try:
        p, q = torch.nn.Parameter(torch.zeros(3)), torch.nn.Parameter(torch.zeros(3))
        opt, plain = pf.ProGradAdamW([p], fused=fused), torch.optim.AdamW([q], fused=fused)
        opt.backward(p.sum(), -p.sum())
        opt.step()
        q.sum().backward()
        plain.step()
    finally:
        torch.set_default_dtype(before)
    assert opt.state[p]["step"].dtype == plain.state[q]["step"].dtype


@pytest.mark.parametrize("make_opt", [pf.ProGradAdamW, pf.ProGradSGD])
@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.skipif(OLD_UPDATES, reason="this PyTorch's own updates refuse it")
def test_one_element_learning_rate_and_number(make_opt, backend):
    """A rate of shape (1,) with a 0-d parameter."""
    active = pf.backends.active()["cpu"]
    if backend not in pf.backends.available():
        pytest.skip("pure-Python installation")
    p = torch.nn.Parameter(torch.tensor(1.0))
    opt = make_opt([p], lr=torch.tensor([0.1]))
    pf.backends.use(backend)
    try:
        opt.backward(p * 2, p * 3)
        opt.step()
    finally:
        pf.backends.use(active)
    assert p.shape == ()
    assert p.item() < 1


def test_sgd_without_momentum_keeps_no_state():
    p = parameters()
    opt = pf.ProGradSGD(p, lr=0.1)
    run_both(opt, p, steps=1)
    assert opt.state_dict()["state"] == {}


def test_step_leaves_the_gradient_alone():
    """As in torch.optim: `.grad` goes on accumulating until zero_grad, also across a step."""
    (p,), (q,) = parameters([(8,)], torch.float64), parameters([(8,)], torch.float64)
    a, b, c, d = (x.detach() for x in parameters([(8,)] * 4, torch.float64, seed=5))
    opt, plain = pf.ProGradAdamW([p], **ADAMW), torch.optim.AdamW([q], **ADAMW)
    total = torch.zeros_like(p)
    for task, general in ((a, b), (c, d)):
        opt.backward((p * task).sum(), (p * general).sum())
        total = total + reference.project([task], [general])[0]
        assert_close(p.grad, total, "formula", torch.float64)
        kept = q.grad = p.grad.clone()
        opt.step()
        assert torch.equal(p.grad, kept)
        plain.step()
    assert same([p], [q])
    assert opt.conflict.conflicts.item() > 0


def test_clipping_bounds_the_update():
    p = parameters()
    opt = pf.ProGradSGD(p, lr=1.0)
    before = [x.detach().clone() for x in p]
    opt.backward(*losses(p, 0))
    torch.nn.utils.clip_grad_norm_(p, 0.01)
    opt.step()
    moved = torch.cat([(x.detach() - y).flatten() for x, y in zip(p, before, strict=True)]).norm()
    assert float(moved) == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", NAMES)
def test_one_call_is_backward_and_step(name, dtype):
    """Within 2 units in the last place of what the parameter was when the steps began, over several steps."""
    p, q = parameters(dtype=dtype), parameters(dtype=dtype)
    opt, other = make(name, p), make(name, q)
    for step in range(4):
        opt.backward_and_update(*losses(p, step))
        other.zero_grad()
        other.backward(*losses(q, step))
        other.step()
        assert all(x.grad is None for x in p)
        for x, y in zip(p, q, strict=True):
            assert (x - y).abs().max() <= 2 * torch.finfo(dtype).eps * y.abs().max().clamp(min=1)
    assert opt.conflict.conflicts.tolist() == other.conflict.conflicts.tolist()


@pytest.mark.parametrize("name", NAMES)
def test_one_call_takes_what_grad_held(name):
    p, q = parameters(dtype=torch.float64), parameters(dtype=torch.float64)
    opt, other = make(name, p), make(name, q)
    losses(p, 1)[0].backward()
    opt.backward_and_update(*losses(p, 0))
    task, general = losses(q, 0)
    other.backward(task + losses(q, 1)[0], general)
    other.step()
    for x, y in zip(p, q, strict=True):
        assert_close(x, y, "formula", torch.float64)


@pytest.mark.parametrize("name", NAMES)
def test_closures(name):
    """A closure that returns the pair does all by itself; one that returns a loss has called backward, as in torch."""
    p, q, r = parameters(), parameters(), parameters()
    both = make(name, p)
    for step in range(3):
        both.backward_and_update(*losses(p, step))
    opt, step = make(name, q), 0
    for step in range(3):
        task, general = opt.step(lambda step=step: losses(q, step))
        assert task.requires_grad
        assert general.requires_grad
    assert same(p, q)

    opt = make(name, r)
    for step in range(3):

        def closure(step=step):
            opt.zero_grad()
            pair = losses(r, step)
            opt.backward(*pair)
            return pair[0]

        assert opt.step(closure).numel() == 1
    for x, y in zip(p, r, strict=True):
        assert_close(x, y, "trajectory", torch.float32)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("tensor_lr", [False, True])
def test_schedulers(name, tensor_lr):
    p, q = parameters(dtype=torch.float64), parameters(dtype=torch.float64)
    opt = make(name, p)
    if tensor_lr:
        opt.param_groups[0]["lr"] = torch.tensor(opt.param_groups[0]["lr"], dtype=torch.float64)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(opt, T_max=4)
    by_hand = make(name, q)
    base = by_hand.param_groups[0]["lr"]
    for step in range(4):
        by_hand.param_groups[0]["lr"] = base * (1 + math.cos(math.pi * step / 4)) / 2
        run_both(opt, p, step, 1)
        run_both(by_hand, q, step, 1)
        scheduler.step()
    for x, y in zip(p, q, strict=True):
        assert_close(x, y, "formula", torch.float64)


@pytest.mark.parametrize("name", NAMES)
def test_add_param_group(name):
    p = parameters()
    opt = make(name, p[:2])
    run_both(opt, p[:2], steps=2)
    opt.add_param_group({"params": p[2:], "lr": 0.5, "lambda_": 0.5})
    before = [x.detach().clone() for x in p]
    run_both(opt, p, 2, 2)
    assert all(not torch.equal(x, y) for x, y in zip(p, before, strict=True))
    assert opt.conflict.steps.tolist() == [4, 4, 2, 2]
    with pytest.raises(ValueError, match="lambda_: expected a number of at least 0"):
        opt.add_param_group({"params": parameters([(1,)]), "lambda_": -1.0})


@pytest.mark.parametrize("name", NAMES)
def test_hooks_run_once(name):
    """torch wraps the step of each optimizer class it has seen: the hooks must not run for the parent's step again."""
    torch.optim.AdamW(parameters())
    torch.optim.SGD(parameters(), lr=0.1)
    p = parameters()
    opt = make(name, p)
    calls = []
    opt.register_step_pre_hook(lambda *_: calls.append("pre"))
    opt.register_step_post_hook(lambda *_: calls.append("post"))
    run_both(opt, p, steps=2)
    run_plain(opt, p, steps=1)
    assert calls == ["pre", "post"] * 3


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("how", ["deepcopy", "pickle", "state_dict"])
def test_copies_go_on_alike(name, how):
    p = parameters()
    opt = make(name, p, lambda_=0.6)
    run_both(opt, p, steps=3)
    if how == "state_dict":
        q = [torch.nn.Parameter(x.detach().clone()) for x in p]
        twin = make(name, q, lambda_=0.6)
        twin.load_state_dict(copy.deepcopy(opt.state_dict()))  # torch shares the state's memory otherwise
    else:
        q, twin = copy.deepcopy((p, opt)) if how == "deepcopy" else pickle.loads(pickle.dumps((p, opt)))
        assert twin.conflict.steps.tolist() == opt.conflict.steps.tolist() == [3] * len(p)
    run_both(opt, p, 3, 3)
    run_both(twin, q, 3, 3)
    assert opt.conflict.steps.tolist() == [6] * len(p)
    assert twin.conflict.steps.tolist() == [3 if how == "state_dict" else 6] * len(p)
    assert same(p, q)


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_leave_sums_behind(copier):
    """A copied parameter has no .grad, so its copied optimizer must have no sum either."""
    p = parameters()
    opt = pf.ProGradSGD(p, lr=0.1)
    with opt.accumulate():
        opt.backward(*losses(p, 0))
    q, twin = copier((p, opt))
    opt.zero_grad()
    run_both(opt, p)
    run_both(twin, q)
    assert same(p, q)


# torch warns of every look at .grad of a tensor with a history, which differentiable=True is about
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize("make_opt", [pf.ProGradSGD, pf.ProGradAdamW])
def test_differentiable(make_opt):
    """Derivatives of the parameter after the step in both gradients, against finite differences; here they conflict."""
    a = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64, requires_grad=True)
    b = torch.tensor([0.3, 1.0, 0.2], dtype=torch.float64, requires_grad=True)

    def after_one_step(a, b):
        p = torch.ones(3, dtype=torch.float64, requires_grad=True).clone()
        opt = make_opt([p], lr=0.1, weight_decay=0.1, lambda_=0.8, differentiable=True)
        opt.backward((p * a).sum(), (p * b).sum(), create_graph=True)
        opt.step()
        return p

    assert torch.autograd.gradcheck(after_one_step, (a, b))
    (in_b,) = torch.autograd.grad(after_one_step(a, b).sum(), b)
    assert in_b.abs().min() > 0  # the projection itself carries a derivative
