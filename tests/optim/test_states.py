"""Guards a step whose parameters, gradients and states do not fit: refused by name, and nothing has moved."""

import copy
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

import prograd_fast as pf
from tests.ops.support import BACKENDS, running_on
from tests.paths import REPOSITORY

OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "adamw": lambda params: pf.ProGradAdamW(params, lr=0.1),
    "amsgrad": lambda params: pf.ProGradAdamW(params, lr=0.1, amsgrad=True, scope="row"),
    "adamw global": lambda params: pf.ProGradAdamW(params, lr=0.1, scope="global"),
    "adamw with a rule": lambda params: pf.ProGradAdamW(params, lr=0.1, rule=pf.rules.Bloop(0.8, 0.5)),
    "sgd": lambda params: pf.ProGradSGD(params, lr=0.1, momentum=0.9),
    "sgd with a rule": lambda params: pf.ProGradSGD(params, lr=0.1, momentum=0.9, rule=pf.rules.GradVac(0.3)),
}


def groups(*shapes: tuple[int, ...]) -> list[dict[str, list[nn.Parameter]]]:
    """A parameter group for each shape, so that a step takes several operators."""
    return [{"params": [nn.Parameter(torch.ones(shape))]} for shape in shapes]


def parameters(opt: Optimizer) -> list[Tensor]:
    return [p for group in opt.param_groups for p in group["params"]]


def losses(opt: Optimizer) -> list[Tensor]:
    return [sum((p * torch.linspace(a, 1, p.numel()).view_as(p)).sum() for p in parameters(opt)) for a in (1, -2)]


def backward(opt: Optimizer) -> None:
    opt.zero_grad()
    opt.backward(*losses(opt))  # type: ignore[attr-defined]


def step(opt: Optimizer) -> None:
    backward(opt)
    opt.step()


def one_call(opt: Optimizer) -> None:
    opt.zero_grad()
    opt.backward_and_update(*losses(opt))  # type: ignore[attr-defined]


WAYS: dict[str, Callable[[Optimizer], None]] = {"backward and step": step, "one call": one_call}


def moved(opt: Optimizer) -> list[Tensor]:
    """All that an update changes; a rule's memory belongs to the backward."""
    kept = [state for p in parameters(opt) for state in opt.state[p].items()]
    states = [value for name, value in kept if name not in ("task_average", "target_cosine") and not value.is_meta]
    states = [value for value in states if value.untyped_storage().nbytes()]
    return [x.detach().double() if x.dtype.itemsize == 1 else x.detach().clone() for x in [*parameters(opt), *states]]


def another_shape(opt: Optimizer) -> None:
    """The state of an optimizer of the same kind with a smaller parameter, as load_state_dict takes it."""
    p = parameters(opt)[-1]
    other = copy.deepcopy(opt)
    q = parameters(other)[-1]
    q.data, q.grad = torch.ones(1, *p.shape[1:]), None
    other.state[q].clear()
    step(other)
    opt.load_state_dict(other.state_dict())


def larger_data(opt: Optimizer) -> None:
    p = parameters(opt)[-1]
    p.data, p.grad = torch.ones(2 * len(p), *p.shape[1:]), None


def larger_data_after_backward(opt: Optimizer) -> None:
    backward(opt)
    p = parameters(opt)[-1]
    p.data = torch.ones(2 * len(p), *p.shape[1:])


def state_name(opt: Optimizer) -> str:
    return "momentum_buffer" if "momentum" in opt.defaults else "exp_avg_sq"


def empty_state(opt: Optimizer) -> None:
    opt.state[parameters(opt)[-1]][state_name(opt)] = torch.empty(0)


def state_elsewhere(opt: Optimizer) -> None:
    state = opt.state[parameters(opt)[-1]]
    state[state_name(opt)] = state[state_name(opt)].to("meta")


def integer_state(opt: Optimizer) -> None:
    state = opt.state[parameters(opt)[-1]]
    state[state_name(opt)] = state[state_name(opt)].long()


def damaged(change: Callable[[Tensor], Tensor], name: str | None = None) -> Callable[[Optimizer], None]:
    """A state of the last parameter, changed."""

    def damage(opt: Optimizer) -> None:
        state = opt.state[parameters(opt)[-1]]
        which = name if name in state else state_name(opt)
        state[which] = change(state[which])

    return damage


def freed(x: Tensor) -> Tensor:
    copy = x.clone()
    copy.untyped_storage().resize_(0)
    return copy


def expanded_data(opt: Optimizer) -> None:
    p = parameters(opt)[-1]
    p.data = p.data[:1].expand(p.shape)


DAMAGES = {f.__name__: f for f in (another_shape, larger_data, empty_state, state_elsewhere, integer_state)}
# what only the operator of the second group would find, after that of the first has moved
DAMAGES |= {
    "freed state": damaged(freed),
    "expanded state": damaged(lambda x: x[:1].expand(x.shape)),
    "negated state": damaged(torch._neg_view),
    "state of eight bits": damaged(lambda x: x.to(torch.float8_e4m3fn)),
    "step elsewhere": damaged(lambda x: x.to("meta"), "step"),
    "step of another dtype": damaged(lambda x: x.half() if x.dim() == 0 else x.long(), "step"),
    "expanded_data": expanded_data,
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_state_that_does_not_fit(backend: str, way: str, kind: str, damage: str) -> None:
    with running_on(backend):
        opt = OPTIMIZERS[kind](groups((3, 2), (4, 5)))
        step(opt)
        DAMAGES[damage](opt)
        before = moved(opt)
        with pytest.raises(RuntimeError) as error:
            WAYS[way](opt)
    assert "of parameter 0 of group 1" in str(error.value) or "task_average: expected" in str(error.value)
    assert "expected" in str(error.value)
    assert "got" in str(error.value)
    assert all(torch.equal(a, b) for a, b in zip(before, moved(opt), strict=True))


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_parameter_that_grew_after_backward(kind: str) -> None:
    opt = OPTIMIZERS[kind](groups((3, 2), (4, 5)))
    step(opt)
    larger_data_after_backward(opt)
    before = moved(opt)
    with pytest.raises(RuntimeError, match=r"gradient of parameter 0 of group 1.*\(8, 5\).*got \(4, 5\)"):
        opt.step()
    assert all(torch.equal(a, b) for a, b in zip(before, moved(opt), strict=True))


@pytest.mark.parametrize(
    "lr",
    [torch.tensor(0.1, device="meta"), torch.tensor([0.1, 0.2]), torch.tensor(1), torch.tensor(1j)],
    ids=["elsewhere", "two", "an integer", "complex"],
)
@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("way", WAYS)
def test_a_learning_rate_that_the_second_group_cannot_read(way: str, kind: str, lr: Tensor) -> None:
    opt = OPTIMIZERS[kind](groups((3, 2), (4, 5)))
    step(opt)
    opt.param_groups[1]["lr"] = lr
    before = moved(opt)
    with pytest.raises(RuntimeError, match="lr of a parameter group: expected"):
        WAYS[way](opt)
    assert all(torch.equal(a, b) for a, b in zip(before, moved(opt), strict=True))


def test_a_missing_state_and_a_step_that_is_no_tensor() -> None:
    opt = OPTIMIZERS["adamw"]([("prompt.ctx", nn.Parameter(torch.ones(2, 3)))])
    step(opt)
    state = opt.state[parameters(opt)[0]]
    del state["exp_avg"]
    with pytest.raises(RuntimeError, match=r"exp_avg of parameter 0 of group 0 \(prompt.ctx\).*got none"):
        step(opt)
    state["exp_avg"], state["step"] = torch.zeros(2, 3), 3
    with pytest.raises(RuntimeError, match=r"step of parameter 0 .*expected a tensor, got int"):
        step(opt)
    state["step"] = torch.ones(2)
    with pytest.raises(RuntimeError, match=r"step of parameter 0 .*expected one number, got shape \(2,\)"):
        step(opt)
    state["step"] = torch.tensor(3.0)
    step(opt)


def test_a_rule_takes_no_state_of_other_parameters() -> None:
    opt, other = (pf.ProGradSGD(groups((3, 2)), lr=0.1, scope=s, rule=pf.rules.GradVac()) for s in ("tensor", "row"))
    step(other)
    opt.load_state_dict(other.state_dict())
    with pytest.raises(RuntimeError, match=r"target_cosine: expected shape \(1,\).*got \(3,\)"):
        step(opt)


def test_a_first_step_that_failed_was_none() -> None:
    """SGD's momentum begins with the gradient itself, also at the step after one that was refused."""
    opt, plain = (pf.ProGradSGD(groups((2, 2), (3,)), lr=0.1, momentum=0.9, dampening=0.5) for _ in range(2))
    backward(opt)
    p = parameters(opt)[0]
    p.data = torch.ones(3, 2)
    with pytest.raises(RuntimeError, match="gradient of parameter 0 of group 0"):
        opt.step()
    p.data, p.grad = torch.ones(2, 2), None
    for one in (opt, plain):
        step(one)
    assert all(torch.equal(a, b) for a, b in zip(moved(opt), moved(plain), strict=True))


def test_no_crash_in_a_process_of_its_own() -> None:
    """A small state behind a large parameter used to kill the process; many times over."""
    code = """
import torch
import prograd_fast as pf
makes = {
    "exp_avg_sq": lambda p: pf.ProGradAdamW([p], lr=0.1),
    "momentum_buffer": lambda p: pf.ProGradSGD([p], lr=0.1, momentum=0.9),
}
def step(opt, p):
    opt.zero_grad()
    opt.backward_and_update(p.sum(), -p.square().sum())
for name, make in makes.items():
    for n in (1, 7, 64, 4097):
        p = torch.nn.Parameter(torch.ones(n, 33))
        opt = make(p)
        step(opt, p)
        opt.state[p][name] = torch.zeros(1, 2)
        try:
            step(opt, p)
        except RuntimeError as error:
            assert "parameter 0 of group 0" in str(error)
        else:
            raise AssertionError("accepted")
print("done")
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


@pytest.mark.parametrize(
    "call",
    [
        lambda x, y: pf.functional.gram(x, x),
        lambda x, y: pf.functional.gram([torch.ones(3)] * 2, [torch.ones(3)]),
        lambda x, y: pf.functional.project(x, x),
        lambda x, y: pf.functional.project_sgd_(x, x, x, lr=0.1),
        lambda x, y: pf.functional.project_adamw_(x, x, x, x, x, 1, lr=0.1),
        lambda x, y: pf.functional.project_adamw_(y, y, y, y, [torch.ones(2)], 1, lr=0.1),
        lambda x, y: pf.functional.project_sgd_(y, y, y, lr=0.1, momentum=0.9),
        lambda x, y: pf.functional.project_sgd_(y, y, y, lr=torch.ones(2)),
    ],
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_functions_refuse_lists_that_do_not_fit(
    backend: str, call: Callable[[list[Tensor], list[Tensor]], object]
) -> None:
    mixed, fine = [torch.ones(3), torch.ones(3, device="meta")], [torch.ones(3)]
    with running_on(backend), pytest.raises(ValueError, match="expected"):
        call(mixed, fine)
    assert torch.equal(fine[0], torch.ones(3))
