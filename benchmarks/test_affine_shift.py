"""Affine shift forward: 12 bytes per element, read x and bias, write the result. What slices move is more."""

import math

import pytest

from benchmarks.affine_shift import FORWARD
from benchmarks.neighbours import CLIPS


@pytest.mark.parametrize("shape", CLIPS, ids=str)
@pytest.mark.parametrize("side", FORWARD)
def test_forward(timed, shape, side):
    timed(f"affine shift, forward, {shape}", FORWARD[side](shape), 12 * math.prod(shape))
