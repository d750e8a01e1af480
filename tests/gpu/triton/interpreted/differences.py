"""Guards the losses of differences on Triton, against their formulas in float64."""

import math

import pytest
import torch
import torch.nn.functional as F

from prograd_fast import functional
from prograd_fast.ops.differences import structure_loss, structure_sums
from prograd_fast.reference import soft_wing
from tests.gpu.triton.support import draw, ops
from tests.ops.support import DTYPES, accumulation
from tests.ops.test_edges import graph
from tests.tolerances import assert_close


@pytest.mark.parametrize("dtype", DTYPES)
# one element; odd; landmarks; several blocks, odd and a multiple of the widest load
@pytest.mark.parametrize("shape", [(1,), (7,), (3, 68, 2), (5001,), (3, 4096)])
def test_differences(shape, dtype):
    x, t = draw(*shape, dtype=dtype, scale=4).requires_grad_(), draw(*shape, dtype=dtype, scale=4, seed=1)
    wide = x.detach().double().requires_grad_()
    for ours, theirs in (
        (functional.squared_error, F.mse_loss),
        (functional.soft_wing, soft_wing),
        (lambda a, b: functional.soft_wing(a, b, 0.7, 3.0, 0.1), lambda a, b: soft_wing(a, b, 0.7, 3.0, 0.1)),
    ):
        loss, expected = ours(x, t), theirs(wide, t.double())
        assert_close(loss, expected, "formula", accumulation(dtype))
        gradients = torch.autograd.grad(loss, x)[0], torch.autograd.grad(expected, wide)[0]
        assert_close(*gradients, "formula", dtype)


def test_differences_corners():
    """Nothing at all; no slope at 0; infinity and NaN only where they were; a prediction with strides."""
    assert functional.squared_error(torch.zeros(0), torch.zeros(0)).isnan()
    assert functional.squared_error(torch.zeros(0), torch.zeros(0), "sum") == 0
    x = torch.tensor([[0.0, math.nan, math.inf, -math.inf, 1e-30, 1.0, -1.0]])
    _, cotangents = ops.difference_loss(x, torch.zeros(1, 7), True, 2.0, 20.0, 0.5, 1.0)
    assert cotangents.isnan().tolist() == [[False, True] + [False] * 5]
    assert cotangents[0, [0, 4, 5, 6]].tolist() == [0, 1, 1, -1]
    y = draw(6, 5, dtype=torch.float32)
    strided, copy = (
        ops.difference_loss(a, torch.zeros(5, 6), False, 1, 1, 1, 1.0) for a in (y.t(), y.t().contiguous())
    )
    assert all(torch.equal(a, b) for a, b in zip(strided, copy, strict=True))


# landmarks; several programs, of three axes; a node that nobody listens to and one that listens to nobody; nothing
@pytest.mark.parametrize(("shape", "more"), [((3, 11, 2), 20), ((2, 90, 3), 60), ((2, 3, 1), 0), ((0, 4, 2), 3)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_structure_loss(dtype, shape, more):
    rows, columns = graph(shape[1], more)
    kept = (rows != columns) if more else rows == 0  # without loops
    rows, columns = rows[kept], columns[kept] + (not more)
    x, t = draw(*shape, dtype=dtype, scale=4).requires_grad_(), draw(*shape, dtype=dtype, scale=4, seed=1)
    wide, settings = x.detach().double().requires_grad_(), (0.7, 3.0, 0.1)
    ours = structure_loss(x, t, rows, columns, *settings)
    factor = 1 / x.numel() if x.numel() else math.nan
    theirs = structure_sums(wide, t.double(), rows, columns, *settings, factor)
    for loss, expected in zip(ours, theirs, strict=True):
        assert_close(loss.nan_to_num(), expected.nan_to_num(), "formula", accumulation(dtype))
        gradients = [torch.autograd.grad(*pair, retain_graph=True)[0] for pair in ((loss, x), (expected, wide))]
        assert_close(*gradients, "formula", dtype)


def test_structure_loss_of_wrong_ends():
    """Edges to no node, which a GPU cannot refuse, bring NaN; nobody else's memory is read."""
    rows, columns = torch.tensor([0, 1, 9, 2]), torch.tensor([1, -1, 0, 1])
    x = draw(2, 4, 2, dtype=torch.float32)
    points, offsets, cotangents = ops.structure_loss(x, torch.zeros(2, 4, 2), rows, columns, 2.0, 20.0, 0.5, 1.0)
    assert points.isfinite()
    assert offsets.isnan()
    assert cotangents[0].isfinite().all()
    assert cotangents[1, :, [0, 1]].isnan().all()
    assert cotangents[1, :, [2, 3]].isfinite().all()
