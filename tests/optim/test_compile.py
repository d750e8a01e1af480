"""Guards torch.compile over loss and step: one graph, which a schedule does not compile anew."""

import pytest
import torch
from torch._dynamo.testing import CompileCounter

import prograd_fast as pf


@pytest.fixture(autouse=True)
def fresh():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def gradients(opt, params, step):
    opt.zero_grad(set_to_none=False)  # new memory for a gradient invalidates any compiled step, torch.optim's too
    opt.backward(sum((p * (step + 1.0)).sum() for p in params), sum((p**2).sum() for p in params))


# dynamo says that it leaves out profiling marks, and it hides the step from the scheduler
@pytest.mark.filterwarnings("ignore:Profiler record function:UserWarning", "ignore:Detected call of:UserWarning")
@pytest.mark.parametrize(
    ("make", "tensor_lr"),
    [(pf.ProGradAdamW, False), (lambda p, **k: pf.ProGradSGD(p, momentum=0.9, **k), True)],
    ids=["adamw", "sgd, rate is a tensor"],
)
def test_step_compiles_in_one_graph_and_once(make, tensor_lr):
    """The first call makes the state, the second finds it; from then on nothing is compiled, whatever the rate."""
    torch.manual_seed(0)
    p = [torch.nn.Parameter(torch.randn(4, 6)), torch.nn.Parameter(torch.randn(5))]
    q = [torch.nn.Parameter(x.detach().clone()) for x in p]
    lr = torch.tensor(0.01) if tensor_lr else 0.01
    opt, eager = make(p, lr=lr), make(q, lr=lr.clone() if tensor_lr else lr)
    counter = CompileCounter()
    step = torch.compile(opt.step, fullgraph=True, backend=counter)
    schedules = [torch.optim.lr_scheduler.CosineAnnealingLR(o, 10) for o in (opt, eager)]
    compiled = []
    for i in range(6):
        gradients(opt, p, i)
        step()
        gradients(eager, q, i)
        eager.step()
        for schedule in schedules:
            schedule.step()
        compiled.append(counter.frame_count)
    assert compiled[1:] == [compiled[1]] * 5
    assert all(torch.equal(x, y) for x, y in zip(p, q, strict=True))
    assert opt.conflict.steps.tolist() == [6, 6]


def test_loss_compiles_in_one_graph():
    student = torch.randn(6, 11, dtype=torch.bfloat16, requires_grad=True)
    teacher, labels = torch.randn(6, 11, dtype=torch.bfloat16), torch.randint(11, (6,))
    criterion = pf.DualLoss(temperature=2.0)
    compiled = torch.compile(criterion, fullgraph=True, backend="aot_eager")
    for eager_loss, loss in zip(criterion(student, teacher, labels), compiled(student, teacher, labels), strict=True):
        assert torch.equal(eager_loss, loss)
        a, b = (torch.autograd.grad(x, student, retain_graph=True)[0] for x in (eager_loss, loss))
        assert torch.equal(a, b)
