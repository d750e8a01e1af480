"""Guards torch.func, forward mode and torch.export over every loss: the values are those of the formula."""

from typing import Any

import pytest
import torch
import torch.autograd.forward_ad as forward
from torch import Tensor, nn

from prograd_fast import functional, reference
from tests.ops.support import BACKENDS, normal, running_on
from tests.ops.test_second_derivatives import losses
from tests.tolerances import assert_close

NAMES = sorted(losses(functional))
F64 = torch.float64
# PyTorch compiles its own rules of forward mode with it
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:FutureWarning")


def tangent_of(loss: Any, x: Tensor) -> Tensor:
    """In forward mode without torch.func."""
    with forward.dual_level():
        return flat(tuple(forward.unpack_dual(y).tangent for y in results(loss(forward.make_dual(x, tangent(x))))))


def tangent(x: Tensor) -> Tensor:
    return normal(*x.shape, seed=11)


def results(value: Any) -> tuple[Tensor, ...]:
    return value if isinstance(value, tuple) else (value,)


def flat(value: Any) -> Tensor:
    """All numbers of a result."""
    return torch.cat([part.reshape(-1) for part in results(value)])


TRANSFORMS = {
    "grad": lambda loss, x: torch.func.grad(lambda y: flat(loss(y)).sum())(x),
    "jacrev": lambda loss, x: torch.func.jacrev(lambda y: flat(loss(y)))(x),
    "jacfwd": lambda loss, x: torch.func.jacfwd(lambda y: flat(loss(y)))(x),
    "jvp": lambda loss, x: torch.func.jvp(lambda y: flat(loss(y)), (x,), (tangent(x),))[1],
    "hessian": lambda loss, x: torch.func.hessian(lambda y: flat(loss(y)).sum())(x),
    "forward mode": tangent_of,
}


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_derivatives_are_the_formulas(backend: str, name: str, transform: str) -> None:
    """An operator without a derivative in forward mode would give a tangent of zero, without a word."""
    (ours, x), (theirs, _) = (losses(module)[name] for module in (functional, reference))
    apply = TRANSFORMS[transform]
    with running_on(backend):
        got = apply(ours, x)
    want = apply(theirs, x)
    assert want.abs().max() > 1e-6
    assert_close(got, want, "formula", F64)


@pytest.mark.parametrize("name", NAMES)
def test_compile(name: str) -> None:
    """In one graph, with the numbers of eager mode."""
    torch.compiler.reset()
    loss, x = losses(functional)[name]
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    x = x.detach().requires_grad_()
    (got, a), (want, b) = ((y, torch.autograd.grad(y.sum(), x)[0]) for y in map(flat, (compiled(x), loss(x))))
    assert_close(got, want, "formula", F64)
    assert_close(a, b, "formula", F64)


@pytest.mark.parametrize("name", NAMES)
def test_export(name: str) -> None:
    """The operator stays one node of the exported program."""
    loss, x = losses(functional)[name]

    class Module(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            return results(loss(x))

    program = torch.export.export(Module(), (x,))
    assert any("prograd_fast" in str(node.target) for node in program.graph.nodes)
    assert torch.equal(flat(program.module()(x)), flat(loss(x)))
