"""Guards GELU and its approximations on every backend: against PyTorch's in float64 and its autograd."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from prograd_fast.ops.gelu import APPROXIMATIONS as NAMES
from tests.ops.support import BACKENDS, DTYPES, normal, running_on, threads
from tests.tolerances import assert_close

operators = torch.ops.prograd_fast
APPROXIMATIONS = list(enumerate(NAMES))


def gelu(x: Tensor, approximate: int) -> Tensor:
    out = torch.empty_like(x)
    operators.gelu_out(x, approximate, out=out)
    return out


def gelu_in_torch(x: Tensor, name: str) -> Tensor:
    return x * torch.sigmoid(1.702 * x) if name == "sigmoid" else F.gelu(x, approximate=name)


@pytest.mark.parametrize(("approximate", "name"), APPROXIMATIONS)
# 0-d; one element; a rest beside registers; two blocks of the derivative and several threads
@pytest.mark.parametrize("shape", [(), (1,), (3, 19), (41, 1031), (0, 4)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_gelu(backend: str, dtype: torch.dtype, shape: tuple[int, ...], approximate: int, name: str) -> None:
    x, gradient = (3 * normal(*shape, seed=1)).to(dtype), normal(2, *shape, seed=2).to(dtype)
    actual = gradient.clone()
    with running_on(backend):
        out = gelu(x, approximate)
        operators.gelu_backward_(actual, x, approximate)
    leaf = x.double().requires_grad_()
    wanted = gelu_in_torch(leaf, name)
    assert_close(out, wanted, "formula", dtype)
    for k in range(2):
        (by_autograd,) = torch.autograd.grad(wanted, leaf, gradient[k].double(), retain_graph=True)
        assert_close(actual[k], by_autograd, "formula", dtype)


@pytest.mark.parametrize(("approximate", "name"), APPROXIMATIONS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_gelu_of_every_magnitude(backend: str, approximate: int, name: str) -> None:
    # where x, x² and x³ overflow, where the gate is all or nothing, and where it is one half; both signs
    sizes = torch.tensor([0.0, 1e-30, 1e-3, 0.1, 0.7, 1, 3, 5, 8, 12, 13.1, 20, 33, 89, 1e4, 1e13, 1e20, 3e38])
    x = torch.cat([sizes, -sizes])
    gradient = torch.ones(1, len(x))
    with running_on(backend):
        out = gelu(x, approximate)
        operators.gelu_backward_(gradient, x, approximate)
    leaf = x.double().requires_grad_()
    wanted = gelu_in_torch(leaf, name)
    assert ((out - wanted).abs() <= 3e-7 * x.abs()).all()  # of x·gate, the gate to float32
    (derivative,) = torch.autograd.grad(wanted.sum(), leaf)
    derivative = torch.where(leaf.abs() > 1e4, (leaf > 0).double(), derivative)  # autograd: 0 · inf
    assert_close(gradient[0], derivative, "formula", torch.float32)


@pytest.mark.parametrize(("approximate", "name"), APPROXIMATIONS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_gelu_of_what_is_not_a_number(backend: str, approximate: int, name: str) -> None:
    x, gradient = torch.tensor([1.0, torch.nan, torch.inf]), torch.ones(1, 3)
    with running_on(backend):
        out = gelu(x, approximate)
        operators.gelu_backward_(gradient, x, approximate)
    assert out.isnan().tolist() == [False, True, False]
    assert out[2] == torch.inf
    assert gradient[0, :2].isnan().tolist() == [False, True]


def test_any_number_of_threads_gives_the_same_bits() -> None:
    x, gradients = normal(300, 515, seed=1).float(), normal(2, 300, 515, seed=2).float()
    results = []
    for count in (1, 2, 3):
        with threads(count):
            gradient = gradients.clone()
            operators.gelu_backward_(gradient, x, 0)
            results.append((gelu(x, 0), gradient))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
