"""Guards the local soft-argmax on Triton, forward and backward, against its formula in float64."""

import math

import pytest
import torch

from prograd_fast import functional, reference
from tests.gpu.triton.support import draw, ops
from tests.ops.support import DTYPES, accumulation
from tests.tolerances import assert_close


@pytest.mark.parametrize("dtype", DTYPES)
# one pixel; a window larger than the map; a row; two blocks of pixels and a rest; the largest window
@pytest.mark.parametrize(
    ("shape", "window", "temperature"),
    [((1, 1, 1, 1), 1, 1.0), ((2, 3, 4, 3), 7, 3.0), ((1, 2, 1, 9), 5, 10.0), ((1, 2, 63, 67), 5, 2.0),
     ((1, 1, 30, 70), 63, 0.5)],
)  # fmt: skip
def test_soft_argmax(shape, window, temperature, dtype):
    maps = draw(*shape, dtype=dtype).requires_grad_()
    wide, cotangent = maps.detach().double().requires_grad_(), draw(*shape[:2], 2, seed=1)
    points, expected = (f(x, window, temperature) for f, x in (
        (functional.local_soft_argmax, maps), (reference.local_soft_argmax, wide),
    ))  # fmt: skip
    assert_close(points, expected, "formula", accumulation(dtype), torch.tensor(float(max(shape))))
    (ours,) = torch.autograd.grad(points, maps, cotangent.to(points.dtype))
    (theirs,) = torch.autograd.grad(expected, wide, cotangent)
    assert_close(ours, theirs, "formula", dtype, theirs.abs().clamp(min=temperature))


def test_special_values_and_strides():
    """The first of equal values; NaN in its map alone; -inf has no weight; results and maps with strides; no maps."""
    maps = torch.zeros(1, 5, 40, 60)
    maps[0, 1, 30, 7] = maps[0, 1, 20, 59] = 50.0
    maps[0, 2, 1, 1], maps[0, 2, 0, 0] = math.nan, 9.0
    maps[0, 3], maps[0, 3, 20, 30] = -math.inf, 1.0
    maps[0, 4] = -math.inf
    points = functional.local_soft_argmax(maps, 3)
    assert points[0, [0, 1, 3]].tolist() == [[0.0, 0.0], [59.0, 20.0], [30.0, 20.0]]
    assert points[0, 2].isnan().all()
    corner = reference.local_soft_argmax(maps[:, 4:], 3)[0, 0]
    assert_close(points[0, 4], corner, "formula", torch.float32)
    h = draw(2, 3, 9, 7, dtype=torch.float32)
    strided = functional.local_soft_argmax(h.transpose(2, 3).contiguous().transpose(2, 3))
    assert torch.equal(strided, functional.local_soft_argmax(h))
    assert functional.local_soft_argmax(h[:0]).shape == (0, 3, 2)
    peaks, ones = h.flatten(2).argmax(2), torch.ones(2, 3, 2)
    half = ops.local_soft_argmax_backward(ones.half(), h, peaks, 3, 1.0)
    assert_close(half, ops.local_soft_argmax_backward(ones, h, peaks, 3, 1.0), "formula", torch.float32)
