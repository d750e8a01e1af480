"""Guards torch.compile: what comes after autograd in one graph, the step, the loss; no schedule compiles anew."""

import pytest
import torch
from torch._dynamo.testing import CompileCounter

import prograd_fast as pf
from tests.tolerances import assert_close

MAKES = {
    "adamw": lambda p, lr: pf.ProGradAdamW(p, lr=lr, weight_decay=0.1),
    "sgd, rate is a tensor": lambda p, lr: pf.ProGradSGD(p, lr=torch.tensor(lr), momentum=0.9),
    "adamw with a rule": lambda p, lr: pf.ProGradAdamW(p, lr=lr, rule=pf.rules.GradVac(0.3)),
    "sgd, global": lambda p, lr: pf.ProGradSGD(p, lr=lr, scope="global"),
}
# dynamo says that it leaves out profiling marks, and it hides the step from the scheduler
pytestmark = pytest.mark.filterwarnings(
    "ignore:Profiler record function:UserWarning", "ignore:Detected call of:UserWarning"
)


@pytest.fixture(autouse=True)
def fresh():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def parameters():
    torch.manual_seed(0)
    return [torch.nn.Parameter(torch.randn(4, 6)), torch.nn.Parameter(torch.randn(5))]


def members(opt, params, step):
    """Parameters, their group and both gradients, as they come from autograd."""
    return [(p, opt.param_groups[0], torch.full_like(p, step + 1.0), p.detach() * (-1) ** step) for p in params]


@pytest.mark.parametrize("way", ["_add_projected", "_update_by_both"])
@pytest.mark.parametrize("make", MAKES)
def test_what_comes_after_autograd_compiles_in_one_graph_and_once(make, way):
    """The first call makes the state, the second finds it; from then on nothing is compiled, whatever the rate."""
    p, q = parameters(), parameters()
    opt, eager = MAKES[make](p, 0.01), MAKES[make](q, 0.01)
    counter = CompileCounter()

    def after_autograd(both):
        with torch.no_grad():
            getattr(opt, way)(both, None)

    compiled = torch.compile(after_autograd, fullgraph=True, backend=counter)
    schedules = [torch.optim.lr_scheduler.CosineAnnealingLR(o, 10) for o in (opt, eager)]
    counts = []
    for i in range(6):
        if way == "_add_projected":
            for one in (opt, eager):  # new memory for a gradient invalidates any compiled step, torch.optim's too
                for x in one.param_groups[0]["params"]:
                    x.grad = torch.zeros_like(x) if x.grad is None else x.grad.zero_()
        compiled(members(opt, p, i))
        with torch.no_grad():
            getattr(eager, way)(members(eager, q, i), None)
        for schedule in schedules:
            schedule.step()
        counts.append(counter.frame_count)
    assert counts[1:] == [counts[1]] * 5
    results = [(x, y) if way == "_update_by_both" else (x.grad, y.grad) for x, y in zip(p, q, strict=True)]
    assert all(torch.equal(x, y) for x, y in results)
    assert opt.conflict.steps.tolist() == eager.conflict.steps.tolist()
    assert opt.conflict.conflicts.tolist() == eager.conflict.conflicts.tolist()


STEPS = MAKES | {
    "adamw, moments in float32": lambda p, lr: pf.ProGradAdamW(p, lr=lr, state_dtype=torch.float32),
    "sgd, rounded": lambda p, lr: pf.ProGradSGD(p, lr=lr, momentum=0.9, stochastic_rounding=0),
}


@pytest.mark.parametrize(
    "make", [*list(STEPS)[:2], *(pytest.param(m, marks=pytest.mark.slow) for m in list(STEPS)[2:])]
)
def test_a_compiled_step_is_the_step(make):
    """In one graph, which torch.optim's own step is not; a rate that is a number costs one more, once."""
    p, q = parameters(), parameters()
    opt, eager = STEPS[make](p, 0.01), STEPS[make](q, 0.01)
    counter = CompileCounter()
    step = torch.compile(opt.step, fullgraph=True, backend=counter)
    counts = []
    for i in range(5):
        for one, params in ((opt, p), (eager, q)):
            one.zero_grad(set_to_none=False)  # new memory for a gradient invalidates any compiled step
            one.backward(sum((x * (i + 1.0)).sum() for x in params), sum((x**2).sum() for x in params))
            lr = one.param_groups[0]["lr"]
            one.param_groups[0]["lr"] = lr.mul_(0.9) if isinstance(lr, torch.Tensor) else lr * 0.9
        step()
        eager.step()
        counts.append(counter.frame_count)
    assert counts[2:] == [counts[2]] * 3
    for x, y in zip(p, q, strict=True):
        assert_close(x, y, "trajectory", torch.float32)  # eager steps are torch.optim's


@pytest.mark.skipif(
    not hasattr(torch._dynamo.config, "trace_autograd_ops"), reason="dynamo has no torch.autograd.grad in this torch"
)
@pytest.mark.parametrize(
    "make",
    ["sgd, global", *(pytest.param(m, marks=pytest.mark.slow) for m in ("adamw", "adamw with a rule"))],
)
def test_a_whole_step_in_one_graph(make):
    """Losses, both gradients, projection and update: one graph for all steps but the first, which makes the state."""
    p, q = parameters(), parameters()
    rates = [torch.tensor(0.01), torch.tensor(0.01)]
    opt, eager = (STEPS[make](x, lr) for x, lr in zip((p, q), rates, strict=True))
    criterion, x, labels = pf.DualLoss(), torch.randn(6, 4), torch.arange(6)

    def step(one, params):
        logits = x @ params[0]
        task, general = criterion(logits, x @ torch.ones(4, 6), labels)
        one.backward_and_update(task + params[1].square().sum(), general)
        return task.detach()

    counter = CompileCounter()
    compiled = torch.compile(step, fullgraph=True, backend=counter)
    counts = []
    for _ in range(4):
        with torch._dynamo.config.patch(trace_autograd_ops=True):
            loss = compiled(opt, p)
        assert_close(loss, step(eager, q), "trajectory", torch.float32)
        for one in (opt, eager):
            one.param_groups[0]["lr"].mul_(0.7)
        counts.append(counter.frame_count)
    assert counts == [1, 2, 2, 2]
    for a, b in zip(p, q, strict=True):
        assert_close(a, b, "trajectory", torch.float32)
    assert opt.conflict.steps.tolist() == eager.conflict.steps.tolist()


def test_loss_compiles_in_one_graph():
    student = torch.randn(6, 11, dtype=torch.bfloat16, requires_grad=True)
    teacher, labels = torch.randn(6, 11, dtype=torch.bfloat16), torch.randint(11, (6,))
    criterion = pf.DualLoss(temperature=2.0)
    compiled = torch.compile(criterion, fullgraph=True, backend="aot_eager")
    for eager_loss, loss in zip(criterion(student, teacher, labels), compiled(student, teacher, labels), strict=True):
        assert torch.equal(eager_loss, loss)
        a, b = (torch.autograd.grad(x, student, retain_graph=True)[0] for x in (eager_loss, loss))
        assert torch.equal(a, b)
