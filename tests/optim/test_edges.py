"""Guards gradients that are missing, gone, shared or not finite, steps without a host sync, and refusals."""

import copy
import math

import pytest
import torch

import prograd_fast as pf
from prograd_fast.ops.registry import SHORTCUTS
from prograd_fast.optim.conflict import ConflictLog
from tests.optim.support import ADAMW, TENSORS, same
from tests.optim.support import parameters as parameters_of


def parameters(shapes=tuple(shape for shape, _ in TENSORS)):
    return parameters_of([(shape, torch.float32) for shape in shapes])


# ---- gradients that are gone


def zero(how, opt, p):
    if how == "None":
        p.grad = None
    elif how == "zeros":
        p.grad.zero_()
    else:
        opt.zero_grad()


ZEROS = ["None", "zeros", "opt.zero_grad"]  # what model.zero_grad() does, with and without set_to_none; the right way


@pytest.mark.parametrize("how", ZEROS)
def test_a_plain_step_after_a_projected_one(how):
    """Nothing is left of the general gradient: a plain backward afterwards is plain."""
    p = torch.nn.Parameter(torch.zeros(2))
    opt = pf.ProGradSGD([p], lr=1.0)
    opt.backward((p * torch.tensor([1.0, -1.0])).sum(), p[1])
    opt.step()
    assert p.tolist() == [-1.0, 0.0]
    zero(how, opt, p)
    (p * torch.tensor([1.0, -1.0])).sum().backward()
    opt.step()
    assert p.tolist() == [-2.0, 1.0]


@pytest.mark.parametrize("how", ZEROS)
def test_nothing_is_left_of_a_batch_that_was_skipped(how):
    p = torch.nn.Parameter(torch.zeros(2))
    opt = pf.ProGradSGD([p], lr=1.0)
    opt.backward(p.sum(), 5 * p[1])
    zero(how, opt, p)
    opt.backward((p * torch.tensor([1.0, -1.0])).sum(), p[0])  # b = (1, 0) alone does not conflict
    opt.step()
    assert p.tolist() == [-1.0, 1.0]
    assert opt.conflict.conflicts.tolist() == [0]


def test_each_parameter_that_a_loss_reaches_has_a_gradient():
    p, q, r = (torch.nn.Parameter(torch.zeros(2)) for _ in range(3))
    opt = pf.ProGradSGD([p, q, r], lr=1.0)
    opt.backward(p.sum(), -q.sum())
    assert p.grad.tolist() == [1.0, 1.0]
    assert q.grad.tolist() == [0.0, 0.0]
    assert r.grad is None


# ---- gradients that are missing, shared or not finite


def test_missing_and_unused_gradients():
    """A tensor that the general loss does not reach is updated plainly and counted; one that neither reaches stays."""
    p = parameters([(3,), (3,), (3,)])
    before = [x.detach().clone() for x in p]
    opt = pf.ProGradSGD(p, lr=0.1)
    opt.backward(p[0].sum() + p[1].sum(), -p[0].sum())
    opt.step()
    assert not torch.equal(p[1], before[1])
    assert torch.equal(p[1], before[1] - 0.1)
    assert torch.equal(p[0], before[0])  # straight conflict: nothing is left
    assert torch.equal(p[2], before[2])
    assert opt.conflict.steps.tolist() == [1, 1, 0]
    assert opt.conflict.absent.tolist() == [0, 1, 0]
    assert opt.conflict.conflicts.tolist() == [1, 0, 0]


def test_non_finite_general_gradient_is_counted_and_ignored():
    p, q = parameters([(3,), (2,)]), parameters([(3,), (2,)])
    opt, plain = pf.ProGradAdamW(p, **ADAMW), torch.optim.AdamW(q, **ADAMW)
    opt.backward(p[0].square().sum() + p[1].sum(), (p[0] * math.inf).sum() + p[1].sum())
    (q[0].square().sum() + q[1].sum()).backward()
    opt.step()
    plain.step()
    assert same(p, q)
    assert opt.conflict.non_finite.tolist() == [1, 0]
    assert opt.conflict.cosine.isnan().tolist() == [True, False]


def test_conflict_numbers():
    p = parameters([(2,)])
    opt = pf.ProGradSGD(p, lr=0.0)
    for general in ([0.0, 1.0], [1.0, 0.0], [1.0, -1.0]):
        opt.zero_grad()
        opt.backward((p[0] * torch.tensor([1.0, -1.0])).sum(), (p[0] * torch.tensor(general)).sum())
        opt.step()
    assert opt.conflict.conflicts.tolist() == [1]
    assert opt.conflict.rate.tolist() == pytest.approx([1 / 3])
    assert opt.conflict.cosine.tolist() == pytest.approx([1.0])


@pytest.mark.parametrize("floor", [0.0, 1e-5])
def test_the_cosine_alone_is_that_of_all_counts(floor):
    """Of vectors that conflict, agree, vanish, overflow, and hide in rounding; before a step; of some parameters."""
    task = [[1.0, -1.0], [1.0, 2.0], [0.0, 0.0], [1e20, 1e20], [1.0, 1.0], [1e-25, 0.0]]
    general = [[1.0, 1.5], [2.0, 1.0], [1.0, 0.0], [1e20, 0.0], [1e-7, 0.0], [1.0, 0.0]]
    p = parameters([(2,)] * len(task))
    opt = pf.ProGradSGD(p, lr=0.0, noise_floor=floor)
    log = opt._projector._log
    assert log.cosine(p).isnan().all()
    opt.backward(*((torch.stack(list(p)) * torch.tensor(x)).sum() for x in (task, general)))
    opt.step()
    alone = log.cosine(p)
    some = log.cosine(p[1:3])
    assert torch.equal(alone.nan_to_num(7), opt.conflict.cosine.nan_to_num(7))
    assert torch.equal(log.cosine(p).nan_to_num(7), alone.nan_to_num(7))  # when all is counted, too
    assert torch.equal(some.nan_to_num(7), alone[1:3].nan_to_num(7))
    nan = [False, False, True, True, floor > 0, True]
    assert alone.isnan().tolist() == nan
    expected = torch.nn.functional.cosine_similarity(torch.tensor(task[:2]), torch.tensor(general[:2]))
    assert alone[:2].tolist() == pytest.approx(expected.tolist())


@pytest.mark.parametrize("rows", [1, 30_000])  # of one parameter: entries of many steps are kept, or of two
def test_conflicts_are_counted_over_more_steps_than_are_kept(rows, monkeypatch):
    monkeypatch.setattr(ConflictLog, "_MOST_STEPS", 40)
    p = [torch.nn.Parameter(torch.zeros(rows, 2))]
    opt = pf.ProGradSGD(p, lr=0.0, scope="row")
    task = torch.tensor([1.0, -1.0])
    steps = 100 if rows == 1 else 5
    for step in range(steps):
        opt.zero_grad()
        opt.backward((p[0] * task).sum(), (p[0] * (task if step % 5 else -task)).sum())
        opt.step()
    conflict = opt.conflict
    assert (conflict.steps == steps).all()
    assert (conflict.conflicts == steps // 5).all()
    assert conflict.cosine.tolist() == pytest.approx([1.0] * rows)
    again = torch.nn.Parameter(torch.zeros(1, 2))
    opt.add_param_group({"params": [again]})
    opt.zero_grad()
    opt.backward((p[0] * task).sum() + again.sum(), -(p[0] * task).sum())
    opt.step()
    assert opt.conflict.steps.tolist() == [steps + 1] * rows + [1]
    assert opt.conflict.conflicts.tolist() == [steps // 5 + 1] * rows + [0]


def test_counts_have_no_graph():
    """One parameter of two has gradients, and those are differentiable: what is counted must not keep their graph."""
    p = parameters([(3,), (2,)])
    opt = pf.ProGradSGD(p, lr=0.1)
    opt.backward(p[0].square().sum(), -p[0].exp().sum(), create_graph=True)
    assert p[0].grad.requires_grad
    assert not opt.conflict.cosine.requires_grad
    copy.deepcopy(opt)


def test_a_first_parameter_elsewhere():
    """Counts are kept where the first parameter is, gradients compared where they are."""
    p = torch.nn.Parameter(torch.ones(3))
    opt = pf.ProGradSGD([torch.nn.Parameter(torch.zeros(2, device="meta")), p], lr=0.1, scope="global")
    opt.backward((p * torch.tensor([1.0, -1.0, 0.0])).sum(), p[1])
    opt.step()
    assert p.tolist() == pytest.approx([0.9, 1.0, 1.0])


def test_expanded_and_shared_gradients_are_owned():
    """The gradient of a sum is one number expanded, and may be shared between tensors; ours can be changed in place."""
    p = parameters([(3,), (3,)])
    opt = pf.ProGradSGD(p, lr=0.1)
    opt.backward((p[0] + p[1]).sum(), p[0].sum() + p[1].sum())
    p[0].grad.mul_(2)
    assert torch.equal(p[0].grad, torch.full((3,), 2.0))
    assert torch.equal(p[1].grad, torch.ones(3))


def test_gradient_views_stay_views():
    """Gradients that live in one flat buffer are added to in place."""
    p = torch.nn.Parameter(torch.zeros(4))
    flat = torch.zeros(6)
    p.grad = flat[1:5]
    opt = pf.ProGradSGD([p], lr=0.1)
    for expected in (1.0, 2.0):
        opt.backward(p[0] - p[1], p[1])
        assert torch.equal(flat, torch.tensor([0.0, expected, 0.0, 0.0, 0.0, 0.0]))


def test_a_large_gradient_takes_memory_that_is_kept_and_that_nobody_holds():
    """What `.grad` was is not written over while somebody holds it; when nobody does, the next one takes its memory."""
    p = torch.nn.Parameter(torch.zeros(2**22))  # 16 MiB
    opt = pf.ProGradSGD([p], lr=0.0)
    opt.backward(p.sum(), p.sum())
    held, where = p.grad, p.grad.data_ptr()
    opt.zero_grad()
    opt.backward(2 * p.sum(), p.sum())
    assert p.grad.data_ptr() != where
    assert bool((held == 1).all())
    where = p.grad.data_ptr()
    opt.zero_grad()
    opt.backward(3 * p.sum(), p.sum())
    if "projected" in SHORTCUTS:
        assert p.grad.data_ptr() == where
    assert bool((p.grad == 3).all())


class _NoSync(torch.utils._python_dispatch.TorchDispatchMode):
    """Fails when a tensor's value is read into Python."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func is not torch.ops.aten._local_scalar_dense.default, "a value was read back to the host"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("scope", ["tensor", "row", "global"])
def test_no_host_sync(scope):
    """Loss, backward and step never wait for the device (fused: torch's other updates read their CPU step count)."""
    ctx = torch.nn.Parameter(torch.randn(4, 6))
    weight, teacher, labels = torch.randn(6, 5), torch.randn(4, 5), torch.tensor([0, 1, 4, 2])
    opt = pf.ProGradAdamW([ctx], **ADAMW, fused=True, scope=scope)
    for _ in range(3):
        opt.zero_grad()
        with _NoSync():
            opt.backward(*pf.DualLoss()(ctx @ weight, teacher, labels))
            opt.step()
            opt.backward_and_update(*pf.DualLoss()(ctx @ weight, teacher, labels))
            opt.conflict.rate  # noqa: B018
    with pytest.raises(AssertionError, match="read back"), _NoSync():
        float(opt.conflict.rate[0])


# ---- errors: parameters untouched, one message that says what to do


def test_bad_losses_change_nothing():
    p = parameters([(3,)])
    before = p[0].detach().clone()
    opt = pf.ProGradAdamW(p)
    good = p[0].sum()
    embedding = torch.nn.Embedding(5, 3, sparse=True)
    sparse = pf.ProGradAdamW(embedding.parameters())
    row = embedding(torch.tensor([1])).sum()
    frozen = pf.ProGradAdamW(parameters([(3,)])[0].requires_grad_(False).split(3))
    cases = [
        (frozen, good, good, ValueError, "backward: expected parameters that require grad"),
        (opt, 1.0, good, TypeError, "task: expected a loss tensor, got float"),
        (opt, p[0] * 2, good, ValueError, r"task: expected a loss of one element, got shape \(3,\)"),
        (opt, good, good.detach(), ValueError, "general: expected a loss with a graph"),
        (opt, good, torch.ones(1, requires_grad=True).sum(), ValueError, "general: expected a loss that depends on"),
        (sparse, row, row, TypeError, "expected dense gradients"),
    ]
    for optimizer, task, general, error, message in cases:
        with pytest.raises(error, match=message):
            optimizer.backward(task, general)
        assert torch.equal(p[0], before)
        assert p[0].grad is None


@pytest.mark.parametrize(
    "make_opt", [pf.ProGradAdamW, pf.ProGradSGD, lambda p, **k: pf.ProGrad(torch.optim.Adam(p), **k)]
)
def test_bad_options(make_opt):
    with pytest.raises(ValueError, match=r"lambda_: expected a number of at least 0, got -0\.5"):
        make_opt(parameters(), lambda_=-0.5)
    with pytest.raises(ValueError, match="lambda_: expected a number of at least 0, got nan"):
        make_opt(parameters(), lambda_=math.nan)
    with pytest.raises(TypeError, match="lambda_: expected a number, got str"):
        make_opt(parameters(), lambda_="1")
    with pytest.raises(ValueError, match="scope: expected one of tensor, row, global, got 'layer'"):
        make_opt(parameters(), scope="layer")


def test_wrapper_refuses_what_it_cannot_wrap():
    for bad in (parameters(), torch.optim.LBFGS(parameters()), pf.ProGradSGD(parameters(), lr=0.1)):
        with pytest.raises(TypeError, match=r"optimizer: expected a torch.optim.Optimizer"):
            pf.ProGrad(bad)
