"""Affine shift, forward, and forward with backward.

Bytes per element: forward 12 (read x and bias, write the result); with the backward 24 (and read gradient and x, write
that of x). What slices and autograd move is more.
"""

import pytest

from benchmarks.affine_shift import FORWARD, WITH_GRADIENT

SHAPES = [(2, 192, 8, 14, 14), (16, 192, 8, 28, 28)]  # in the caches; beyond them


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("side", FORWARD)
def test_forward(timed, shape, side):
    elements = shape[0] * shape[1] * shape[2] * shape[3] * shape[4]
    timed(f"affine shift, {shape}", FORWARD[side](shape), 12 * elements)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("side", WITH_GRADIENT)
def test_with_gradient(timed, shape, side):
    elements = shape[0] * shape[1] * shape[2] * shape[3] * shape[4]
    timed(f"affine shift with gradient, {shape}", WITH_GRADIENT[side](shape), 24 * elements)
