"""Guards the layer norm on Triton, forward and backward, against its formulas in float64."""

import pytest
import torch

from prograd_fast.ops import layer_norm as formulas
from tests.gpu.triton.support import draw, ops
from tests.ops.support import DTYPES, accumulation
from tests.tolerances import assert_close

# one element; rows that are no power of two, in one program and in several; a row over many threads
ROWS = [(1, 1), (3, 100), (70, 40), (2, 3000)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", ROWS)
def test_layer_norm(shape, dtype):
    width, acc = shape[1], accumulation(dtype)
    x, branch = draw(*shape, dtype=dtype), draw(*shape, dtype=dtype, seed=1)
    weight, bias = draw(width, dtype=acc, seed=2), draw(width, dtype=acc, seed=3)
    total, normed = torch.full_like(x, torch.nan), torch.full_like(x, torch.nan)
    statistics = torch.full((shape[0], 2), torch.nan, dtype=acc)
    ops.add_layer_norm_out(x, branch, weight, bias, 1e-5, total=total, normed=normed, statistics=statistics)
    assert_close(total, x.double() + branch.double(), "formula", dtype)
    # from the total as it is stored: a norm enlarges what was rounded away
    exact = total.double()
    expected = formulas.add_layer_norm(exact, torch.zeros_like(exact), weight.double(), bias.double(), 1e-5)
    assert_close(normed, expected[1], "formula", dtype)
    assert_close(statistics, expected[2], "formula", acc)

    d_total, d_normed = draw(3, *shape, dtype=dtype, seed=4), draw(3, *shape, dtype=dtype, seed=5)
    exact = [t.double() for t in (d_total, d_normed, total, statistics, weight)]
    expected = formulas.layer_norm_backward(*exact)
    ops.layer_norm_backward_(d_total, d_normed, total, statistics, weight)
    assert_close(d_total, expected, "formula", dtype)


def test_layer_norm_far_from_zero():
    """A spread of 1 around 1e4, which E[t²] - E[t]² would lose in float32; and rows of one value."""
    x = torch.cat([draw(2, 64) + 1e4, torch.full((1, 64), 3e18)]).float()
    ones, zeros = torch.ones(64), torch.zeros(64)
    total, normed, statistics = torch.empty_like(x), torch.empty_like(x), torch.empty(3, 2)
    ops.add_layer_norm_out(x, torch.zeros_like(x), ones, zeros, 1e-5, total=total, normed=normed, statistics=statistics)
    exact = x.double() - x.double().mean(1, keepdim=True)
    expected = exact / (exact.square().mean(1, keepdim=True) + 1e-5).sqrt()
    # the error is one float32 rounding of the mean
    assert_close(normed[:2], expected[:2], "formula", torch.float32, scale=x[:2])
    assert torch.equal(normed[2], zeros)
