"""Guards the affine shift on Triton, forward and backward, against its formula in float64."""

import pytest
import torch

from prograd_fast.ops.affine_shift import affine_shift_formula
from tests.gpu.triton.support import draw, ops
from tests.ops.support import DTYPES, accumulation
from tests.tolerances import assert_close

# clips and pictures; two programs of a channel; nothing
CASES = {
    "clips": ((2, 7, 3, 4, 5), [2, 1, 1, 1, 0, 2], [1, -1, 2, -3, 3, 0]),
    "pictures": ((3, 4, 5, 6), [2, 2], [-1, 2]),
    "two programs": ((1, 3, 1100), [1, 1, 1], [1, -1, 0]),
    "nothing": ((2, 2, 0, 3), [1, 1], [1, -2]),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_affine_shift(dtype, case):
    shape, *shift = CASES[case]
    x, bias, gradient = (draw(*shape, dtype=dtype, seed=seed) for seed in range(3))
    scale = draw(*shape[:2], dtype=accumulation(dtype), seed=3)
    for given in ((scale, bias), (None, bias), (scale, None), (None, None)):
        out = torch.full(shape, torch.nan, dtype=dtype)
        ops.affine_shift_out(x, *given, *shift, out=out)
        wide = (None if t is None else t.double() for t in given)
        assert_close(out, affine_shift_formula(x.double(), *wide, *shift), "formula", dtype)
    leaves = [t.double().clone().requires_grad_() for t in (x, scale)]
    expected = torch.autograd.grad(affine_shift_formula(*leaves, None, *shift), leaves, gradient.double())
    d_x, d_scale = torch.full(shape, torch.nan, dtype=dtype), torch.full_like(scale, torch.nan)
    ops.affine_shift_backward_out(gradient, x, scale, *shift, d_x=d_x, d_scale=d_scale)
    assert_close(d_x, expected[0], "formula", dtype)
    products = (x.double() * gradient.double()).abs().flatten(2).sum(2)
    assert_close(d_scale, expected[1], "formula", accumulation(dtype), products)
