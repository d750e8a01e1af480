"""Guards linear layers with a GELU, where no backend has kernels of its own, against PyTorch's in float64."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from prograd_fast.ops.gelu import APPROXIMATIONS as NAMES
from tests.ops.support import BACKENDS, DTYPES, normal, running_on
from tests.ops.test_gelu import gelu_in_torch
from tests.tolerances import assert_close

operators = torch.ops.prograd_fast


@pytest.mark.parametrize(("approximate", "name"), list(enumerate(NAMES)))
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_linear_gelu(backend: str, dtype: torch.dtype, bias: bool, approximate: int, name: str) -> None:
    x, weight = normal(5, 8, seed=1, dtype=dtype), normal(7, 8, seed=2, dtype=dtype)
    b = normal(7, seed=3, dtype=dtype) if bias else None
    hidden, active = (torch.empty(5, 7, dtype=dtype) for _ in range(2))
    # parts of wider rows, as the CPU's pieces of a backward are
    gradient, d_hidden = normal(2, 9, 8, seed=4, dtype=dtype)[:, :5], torch.empty(2, 5, 7, dtype=dtype)
    with running_on(backend):
        operators.linear_gelu_out(x, weight, b, approximate, hidden=hidden, active=active)
        operators.linear_gelu_backward_out(gradient, weight.T.contiguous(), hidden, approximate, d_hidden=d_hidden)
    assert_close(hidden, F.linear(x.double(), weight.double(), None if b is None else b.double()), "formula", dtype)
    leaf = hidden.double().requires_grad_()
    wanted = gelu_in_torch(leaf, name)
    assert_close(active, wanted, "formula", dtype)
    for k in range(2):
        (expected,) = torch.autograd.grad(wanted, leaf, gradient[k].double() @ weight.double().T, retain_graph=True)
        assert_close(d_hidden[k], expected, "formula", dtype)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"weight": torch.ones(8, 7).T}, "weight: expected contiguous memory"),
        ({"bias": torch.ones(6)}, "bias: expected shape"),
        ({"active": torch.ones(5, 8)}, "active: expected shape"),
        ({"x": torch.ones(8, 5).T}, "x: expected contiguous rows"),
        ({"approximate": 3}, "approximate: expected 0, 1 or 2"),
    ],
)
def test_a_wrong_call_is_refused(change: dict[str, object], says: str) -> None:
    call: dict[str, Tensor | int | object] = {
        "x": torch.ones(5, 8), "weight": torch.ones(7, 8), "bias": torch.ones(7), "approximate": 0,
        "hidden": torch.ones(5, 7), "active": torch.ones(5, 7),
    }  # fmt: skip
    with pytest.raises(ValueError, match=says):
        operators.linear_gelu_out(**call | change)
