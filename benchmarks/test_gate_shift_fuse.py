"""Gate, shift and fuse, forward, and forward with backward.

Bytes per element: forward 12 (two reads of the clip, one write); with the backward 32 (and both passes read the
gradient and the clip, the second writes the clip's gradient). The authors' steps move more.
"""

import math

import pytest

from benchmarks.gate_shift_fuse import FORWARD, WITH_GRADIENT

SHAPES = [(2, 8, 64, 14, 14), (4, 8, 256, 56, 56)]  # in the caches; beyond them


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("side", FORWARD)
def test_forward(timed, shape, side):
    timed(f"gate, shift and fuse, {shape}", FORWARD[side](shape), 12 * math.prod(shape))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("side", WITH_GRADIENT)
def test_with_gradient(timed, shape, side):
    timed(f"gate, shift and fuse with gradient, {shape}", WITH_GRADIENT[side](shape), 32 * math.prod(shape))
