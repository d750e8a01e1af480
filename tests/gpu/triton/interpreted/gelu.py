"""Guards GELU on Triton, forward and backward, against its formulas in float64."""

import pytest
import torch

from prograd_fast.ops import gelu as formulas
from tests.gpu.triton.support import draw, ops
from tests.ops.support import DTYPES
from tests.tolerances import assert_close


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", range(3))
def test_gelu(kind, dtype):
    """Two programs (of 2048 elements), the second with a few elements."""
    name = formulas.APPROXIMATIONS[kind]
    x, out = draw(2, 5, 207, dtype=dtype, scale=2), torch.full((2, 5, 207), torch.nan, dtype=dtype)
    ops.gelu_out(x, kind, out=out)
    assert_close(out, formulas.gelu(x.double(), name), "formula", dtype)
    gradient = draw(3, 2, 5, 207, dtype=dtype, seed=1)
    expected = formulas.gelu_backward(gradient.double(), x.double(), name)
    ops.gelu_backward_(gradient, x, kind)
    assert_close(gradient, expected, "formula", dtype)


@pytest.mark.parametrize("kind", range(3))
def test_gelu_of_extreme_values(kind):
    """Where exp is 0 or infinite, and where x² and x³ overflow float32: gate and slope are 0 or 1, never NaN."""
    name = formulas.APPROXIMATIONS[kind]
    x = torch.tensor([-3e38, -1e20, -1e13, -200.0, -20.0, -1e-30, 0.0, 1e-30, 20.0, 200.0, 1e13, 1e20, 3e38])
    out, slope = torch.empty_like(x), torch.ones(1, len(x))
    ops.gelu_out(x, kind, out=out)
    ops.gelu_backward_(slope, x, kind)
    expected = formulas.gelu(x.double(), name)
    some = x != 0
    assert_close(out[some] / x[some], expected[some] / x.double()[some], "formula", torch.float32)
    assert out[~some] == 0
    exact = x.double().requires_grad_()
    (derivative,) = torch.autograd.grad(formulas.gelu(exact, name).sum(), exact)
    assert_close(slope[0], derivative, "formula", torch.float32)
