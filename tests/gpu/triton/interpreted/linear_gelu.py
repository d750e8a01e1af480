"""Guards products with a GELU in their epilogue on Triton, against the formulas in float64."""

import pytest
import torch

from prograd_fast.backends.triton_kernels import linear_gelu as kernels
from prograd_fast.ops import gelu as formulas
from tests.gpu.triton.support import draw, ops
from tests.ops.support import DTYPES
from tests.tolerances import assert_close


def check(n_rows, n_inner, n_columns, kind, dtype, with_bias):
    name = formulas.APPROXIMATIONS[kind]
    x, weight = (
        draw(n_rows, n_inner, dtype=dtype),
        draw(n_columns, n_inner, dtype=dtype, seed=1, scale=max(1, n_inner) ** -0.5),
    )
    bias = draw(n_columns, dtype=dtype, seed=2) if with_bias else None
    hidden, active = torch.full((2, n_rows, n_columns), torch.nan, dtype=dtype)
    ops.linear_gelu_out(x, weight, bias, kind, hidden=hidden, active=active)
    expected = x.double() @ weight.double().T + (0 if bias is None else bias.double())
    assert_close(hidden, expected, "formula", dtype)
    assert_close(active, formulas.gelu(hidden.double(), name), "formula", dtype)

    # the gradients are a part of wider rows
    gradient = draw(3, n_rows, n_inner + 8, dtype=dtype, seed=3)[..., :n_inner]
    behind, d_hidden = weight.T.contiguous(), torch.full((3, n_rows, n_columns), torch.nan, dtype=dtype)
    ops.linear_gelu_backward_out(gradient, behind, hidden, kind, d_hidden=d_hidden)
    product = gradient.double() @ behind.double()
    assert_close(d_hidden, formulas.gelu_backward(product, hidden.double(), name), "formula", dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", range(3))
def test_linear_gelu(kind, dtype):
    """Two tiles of rows and of columns, and pieces of the inner size; the last ones have a few elements."""
    check(70, 130, 136, kind, dtype, with_bias=kind != 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_linear_gelu_of_whole_pieces(dtype):
    check(3, 128, 5, 2, dtype, with_bias=True)


def test_linear_gelu_of_many_rows(monkeypatch):
    """Tiles of 128 rows."""
    monkeypatch.setattr(kernels, "MANY_ROWS", 130)
    check(130, 64, 8, 0, torch.float16, with_bias=True)


def test_linear_gelu_of_nothing():
    """No rows; no features, of which the product is 0."""
    check(0, 4, 3, 0, torch.float32, with_bias=True)
    check(2, 0, 3, 0, torch.float32, with_bias=True)
