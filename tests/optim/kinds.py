"""The optimizers as users build them, torch.optim's own beside each, and two losses with given gradients.

`Twin` is what the tests of the table compare with: torch.optim's optimizer on gradients that `reference` projects.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import prograd_fast as pf
from prograd_fast import reference
from prograd_fast.ops.common import Scope
from tests.optim.support import gradients, inner, parameters
from tests.tolerances import assert_close

SHAPES = ((3, 2), (4,))

OPTIMIZERS: dict[str, Callable[..., Any]] = {
    "adamw": lambda p, **k: pf.ProGradAdamW(p, lr=0.1, weight_decay=0.1, **k),
    "sgd": lambda p, **k: pf.ProGradSGD(p, lr=1.0, momentum=0.5, **k),
    "wrapper": lambda p, **k: pf.ProGrad(torch.optim.RMSprop(p, lr=0.1, momentum=0.5), **k),
}
PLAIN: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.1),
    "sgd": lambda p: torch.optim.SGD(p, lr=1.0, momentum=0.5),
    "wrapper": lambda p: torch.optim.RMSprop(p, lr=0.1, momentum=0.5),
}
KINDS = list(OPTIMIZERS)
RATE_ONE: dict[str, Callable[..., Any]] = {  # a step is the gradient itself
    "sgd": lambda p, **k: pf.ProGradSGD(p, lr=1.0, **k),
    "wrapper": lambda p, **k: pf.ProGrad(torch.optim.SGD(p, lr=1.0), **k),
}

# the rules at settings at which each is of consequence; of two parameters, (3, 2) and (4,)
RULES: dict[str, Callable[[], pf.rules.Rule | None]] = {
    "none": lambda: None,
    "ProGrad": lambda: pf.rules.ProGrad(0.7),
    "AGEM": pf.rules.AGEM,
    "PCGrad": pf.rules.PCGrad,
    "GradVac": lambda: pf.rules.GradVac(0.3),
    "CAGrad": lambda: pf.rules.CAGrad(0.4),
    "Bloop": lambda: pf.rules.Bloop(0.8, 0.5),
    "Subspace": lambda: pf.rules.Subspace(torch.linalg.qr(torch.arange(30.0).cos().view(10, 3)).Q.mT.contiguous()),
}


def composable(opt: Any, task: Tensor, general: Tensor) -> None:
    opt.backward(task, general)
    opt.step()


def one_call(opt: Any, task: Tensor, general: Tensor) -> None:
    opt.backward_and_update(task, general)


def closure(opt: Any, task: Tensor, general: Tensor) -> None:
    opt.step(lambda: (task, general))


WAYS: dict[str, Callable[[Any, Tensor, Tensor], None]] = {
    "composable": composable,
    "one call": one_call,
    "closure": closure,
}


def tensors(shapes: Sequence[tuple[int, ...]] = SHAPES, dtype: torch.dtype = torch.float64) -> list[Any]:
    return parameters([(shape, dtype) for shape in shapes])


def losses(params: Sequence[Tensor], step: int) -> tuple[Tensor, Tensor]:
    """Two losses whose gradients depend on the step alone; about every second pair conflicts."""
    task, general = gradients(params, step)
    return inner(params, task), inner(params, general)


def conflict_of(p: Tensor, factor: float = 1.0) -> tuple[Tensor, Tensor]:
    """Losses of two numbers with a = (1, -1), b = (0, 1): the projected gradient is (1, 0)."""
    return factor * (p[0] - p[1]), factor * p[1]


def agreement_of(p: Tensor) -> tuple[Tensor, Tensor]:
    """Losses of two numbers with a = (1, -1), b = (1, 0): no conflict."""
    return p[0] - p[1], 1.0 * p[0]


def point() -> nn.Parameter:
    """Two numbers at 0."""
    return nn.Parameter(torch.zeros(2))


class Twin:
    """The parameters' values and torch.optim's optimizer on gradients that the formula projects."""

    def __init__(self, kind: str, params: Sequence[Tensor], lambda_: float = 1.0, scope: Scope = "tensor") -> None:
        self.params = [nn.Parameter(p.detach().clone()) for p in params]
        self.opt = PLAIN[kind](self.params)
        self.lambda_, self.scope = lambda_, scope

    def backward(self, step: int) -> None:
        """Add the projected gradient to .grad."""
        for p, g in zip(
            self.params, reference.project(*gradients(self.params, step), self.lambda_, self.scope), strict=True
        ):
            p.grad = g if p.grad is None else p.grad + g

    def update(self, step: int) -> None:
        """All of a training step."""
        self.opt.zero_grad()
        self.backward(step)
        self.opt.step()

    def check(self, params: Sequence[Tensor], kind: str = "formula") -> None:
        for x, y in zip(params, self.params, strict=True):
            assert_close(x, y, kind, x.dtype)


@contextmanager
def refused(opt: Any, error: type[Exception], match: str) -> Iterator[None]:
    """Check that what is inside is refused in a message that matches, and that nothing has moved by then."""
    before = everything(opt)
    with pytest.raises(error, match=match):
        yield
    after = everything(opt)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


def everything(opt: Any) -> dict[tuple[int, int, str], Tensor]:
    """Copies of the parameters, their gradients and all state, by group, place in it and name."""
    found = {}
    for i, group in enumerate(opt.param_groups):
        for j, p in enumerate(group["params"]):
            found[i, j, "value"] = p.detach().clone()
            if p.grad is not None:
                found[i, j, "grad"] = p.grad.detach().to_dense().clone()
            for name, value in opt.state.get(p, {}).items():
                if isinstance(value, Tensor):
                    found[i, j, name] = value.detach().clone()
    return found


ways = pytest.mark.parametrize("way", WAYS)


def sgd(*params: Tensor, **settings: Any) -> Any:
    """ProGradSGD that subtracts the gradient as it is."""
    return pf.ProGradSGD(params, **({"lr": 1.0} | settings))
