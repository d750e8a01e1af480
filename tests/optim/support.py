"""Checks that the optimizers agree on every backend; `on` and `other` run the operators on one while they are open.

`test_backends.py` calls these checks for the backends of the CPU, `tests/gpu/triton/interpreted/optimizers.py` for
Triton in the interpreter, which needs a process of its own.
"""

import io
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

import prograd_fast as pf
from prograd_fast import reference
from prograd_fast.ops.common import Scope
from tests.tolerances import assert_close

Backend = Callable[[], AbstractContextManager[None]]

# a context, an odd vector, a number without dimension, nothing; of three dtypes in one parameter group
TENSORS = [
    ((16, 9), torch.float32),
    ((7,), torch.bfloat16),
    ((), torch.float32),
    ((0, 3), torch.float32),
    ((3, 5), torch.float64),
    ((2, 3, 5), torch.bfloat16),
]
# eps: a gradient that cancels must not become a step of the size of lr, with a sign that rounding chooses
ADAMW = {"lr": 0.03, "betas": (0.8, 0.97), "eps": 1e-2, "weight_decay": 0.2}
SGD = {"lr": 0.03, "momentum": 0.8, "weight_decay": 0.2}
RMSPROP = {"lr": 0.01, "eps": 1e-2, "momentum": 0.5}
OPTIMIZERS: dict[str, Callable[..., Any]] = {
    "adamw": lambda p, **k: pf.ProGradAdamW(p, **ADAMW, **k),
    "amsgrad, maximize": lambda p, **k: pf.ProGradAdamW(p, **ADAMW, amsgrad=True, maximize=True, **k),
    "sgd": lambda p, **k: pf.ProGradSGD(p, **SGD, dampening=0.3, **k),
    "nesterov": lambda p, **k: pf.ProGradSGD(p, **SGD, nesterov=True, **k),
    "wrapper": lambda p, **k: pf.ProGrad(torch.optim.RMSprop(p, **RMSPROP), **k),
}
PLAIN: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adamw": lambda p: torch.optim.AdamW(p, **ADAMW),
    "amsgrad, maximize": lambda p: torch.optim.AdamW(p, **ADAMW, amsgrad=True, maximize=True),
    "sgd": lambda p: torch.optim.SGD(p, **SGD, dampening=0.3),
    "nesterov": lambda p: torch.optim.SGD(p, **SGD, nesterov=True),
    "wrapper": lambda p: torch.optim.RMSprop(p, **RMSPROP),
}


def normal(shape: Sequence[int], dtype: torch.dtype, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def parameters(tensors: Sequence[tuple[tuple[int, ...], torch.dtype]] = TENSORS) -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(normal(shape, dtype, seed)) for seed, (shape, dtype) in enumerate(tensors)]


def same(xs: Iterable[Tensor], ys: Iterable[Tensor]) -> bool:
    """Return whether all tensors are equal bit for bit."""
    return all(torch.equal(x, y) for x, y in zip(xs, ys, strict=True))


def gradients(params: Sequence[Tensor], step: int) -> tuple[list[Tensor], list[Tensor]]:
    """Two gradients, of which about every second pair conflicts, whatever the parameters are."""
    task, general = (
        [normal(p.shape, p.dtype, 1000 * (step + 1) + 100 * k + i) for i, p in enumerate(params)] for k in range(2)
    )
    return task, general


def inner(params: Sequence[Tensor], given: Sequence[Tensor]) -> Tensor:
    """A loss with the given gradients."""
    return torch.stack([(p * g).sum().double() for p, g in zip(params, given, strict=True)]).sum()


def run(opt: Any, params: Sequence[Tensor], steps: range) -> None:
    for step in steps:
        task, general = gradients(params, step)
        opt.backward_and_update(inner(params, task), inner(params, general))


def results(opt: Any, params: Sequence[Tensor]) -> list[Tensor]:
    """The parameters and all that is kept for them."""
    states = [torch.as_tensor(state) for p in params for _, state in sorted(opt.state[p].items())]
    return [p.detach() for p in params] + states


def moved(opt: torch.optim.Optimizer, params: Sequence[Tensor], make: Callable[..., Any]) -> tuple[Any, list[Tensor]]:
    """What `make` builds goes on from a file with the parameters and the optimizer's state."""
    file = io.BytesIO()
    torch.save((opt.state_dict(), [p.detach() for p in params]), file)
    file.seek(0)
    state, values = torch.load(file, weights_only=True)
    params = [torch.nn.Parameter(value) for value in values]
    opt = make(params)
    opt.load_state_dict(state)
    return opt, params


def assert_same(actual: Sequence[Tensor], expected: Sequence[Tensor], bitwise: bool, shared: bool = False) -> None:
    """The same trajectory; `shared`: tensors of all dtypes are one unit, so that float32 sums reach every one."""
    for x, y in zip(actual, expected, strict=True):
        if bitwise:
            assert torch.equal(x, y)
        else:
            dtype = torch.float32 if shared and x.dtype == torch.float64 else x.dtype
            assert_close(x, y, "trajectory", dtype, y.double().abs().clamp(min=0.1))


def check_same_trajectory(on: Backend, other: Backend, name: str, scope: Scope) -> None:
    """The same start, the same gradients: the same parameters, state and counts."""
    outcomes, counts = [], []
    for backend in (on, other):
        params = parameters()
        opt = OPTIMIZERS[name](params, lambda_=0.8, scope=scope)
        with backend():
            run(opt, params, range(4))
        outcomes.append(results(opt, params))
        counts.append(opt.conflict)
    assert_same(*outcomes, bitwise=on is other, shared=scope == "global")
    assert 0 < int(counts[0].conflicts.sum()) < int(counts[0].steps.sum())  # both cases were met
    for field in ("steps", "conflicts", "non_finite", "absent"):
        assert torch.equal(getattr(counts[0], field), getattr(counts[1], field))
    cosines = [count.cosine.nan_to_num() for count in counts]
    assert_close(*cosines, "formula", torch.float32, torch.ones(1))


def check_exchange(on: Backend, other: Backend, name: str) -> None:
    """Two steps on one backend, a checkpoint, two on the other: as four on one; bit for bit where they are the same."""
    unbroken = parameters()
    whole = OPTIMIZERS[name](unbroken)
    params: list[Any] = parameters()
    opt = OPTIMIZERS[name](params)
    with on():
        run(whole, unbroken, range(4))
        run(opt, params, range(2))
    opt, params = moved(opt, params, OPTIMIZERS[name])
    with other():
        run(opt, params, range(2, 4))
    assert_same(results(opt, params), results(whole, unbroken), bitwise=on is other)


def check_change_under_way(on: Backend, other: Backend, name: str) -> None:
    """The same optimizer goes on when the kernels are changed after each step."""
    unbroken, params = parameters(), parameters()
    whole, opt = OPTIMIZERS[name](unbroken), OPTIMIZERS[name](params)
    with on():
        run(whole, unbroken, range(4))
    for step in range(4):
        with (on, other)[step % 2]():
            run(opt, params, range(step, step + 1))
    assert_same(results(opt, params), results(whole, unbroken), bitwise=on is other)
    assert opt.conflict.steps.tolist() == [4] * len(params)


def check_exchange_with_torch(on: Backend, name: str) -> None:
    """Ours, then torch.optim on gradients that the formulas projected, then ours: as ours all the way.

    In float32 and float64: torch.optim rounds its intermediate results to 16 bits where the parameter has 16.
    """
    tensors = [(shape, torch.float32 if dtype == torch.bfloat16 else dtype) for shape, dtype in TENSORS]
    unbroken = parameters(tensors)
    whole = OPTIMIZERS[name](unbroken)
    params: list[Any] = parameters(tensors)
    opt: Any = OPTIMIZERS[name](params)
    with on():
        run(whole, unbroken, range(6))
        run(opt, params, range(2))
        opt, params = moved(opt, params, PLAIN[name])
        for step in range(2, 4):
            for p, g in zip(params, reference.project(*gradients(params, step)), strict=True):
                p.grad = g
            opt.step()
        opt, params = moved(opt, params, OPTIMIZERS[name])
        run(opt, params, range(4, 6))
    assert_same(results(opt, params), results(whole, unbroken), bitwise=False)


def views() -> tuple[list[Tensor], list[Tensor]]:
    """Bigger buffers of sevens, and in each a transposed, a strided, an unaligned view, or some rows."""
    a, b, c, d = buffers = [torch.full(shape, 7.0) for shape in ((6, 8), (4, 16), (31,), (9, 3))]
    return buffers, [a.T, b[:, ::2], c[1:].view(5, 6), d[2:7]]


def check_views(on: Backend, name: str, scope: Scope) -> None:
    """Views as parameters and gradients: what contiguous tensors give, bit for bit; nothing beside them changes."""
    buffers, values = views()
    gradient_buffers, gradient_views = views()
    twins = parameters([(tuple(view.shape), torch.float32) for view in values])
    params = [view.copy_(twin.detach()).requires_grad_() for view, twin in zip(values, twins, strict=True)]
    opt, plain = (OPTIMIZERS[name](p, lambda_=0.8, scope=scope) for p in (params, twins))
    with on():
        for step in range(3):
            plain.zero_grad()
            plain.backward(*(inner(twins, given) for given in gradients(twins, step)))
            plain.step()
            opt.zero_grad()
            for p, view in zip(params, gradient_views, strict=True):
                p.grad = view.zero_()
            task, general = gradients(params, step)
            general[0] = general[0].T.contiguous().T  # autograd hands it on as it is
            opt.backward(inner(params, task), inner(params, general))
            opt.step()
            assert all(p.grad is view for p, view in zip(params, gradient_views, strict=True))
        assert_same(results(opt, params), results(plain, twins), bitwise=True)
    with torch.no_grad():
        for view in (*params, *gradient_views):
            view.fill_(7.0)
    assert all((buffer == 7).all() for buffer in buffers + gradient_buffers)


def check_expanded(on: Backend, name: str) -> None:
    """One number seen as many: as the gradient of a sum, and in `.grad` already."""
    outcomes = []
    for expanded in (True, False):
        p, q = parameters([((3, 5), torch.float32)] * 2)
        opt = OPTIMIZERS[name]([p, q])
        with on():
            for _ in range(2):
                opt.zero_grad()
                if expanded:
                    q.grad = torch.tensor(2.0).expand(3, 5)
                    opt.backward_and_update(p.sum(), -2 * p.sum() - q[1:].sum())
                else:
                    q.grad = torch.full((3, 5), 2.0)
                    rows = torch.tensor([0.0, 1.0, 1.0]).unsqueeze(1).repeat(1, 5)
                    task, general = [torch.ones(3, 5)], [torch.full((3, 5), -2.0), -rows]
                    opt.backward_and_update(inner([p], task), inner([p, q], general))
        outcomes.append(results(opt, [p, q]))
        assert opt.conflict.conflicts.tolist() == [2, 2]
    assert_same(*outcomes, bitwise=True)
