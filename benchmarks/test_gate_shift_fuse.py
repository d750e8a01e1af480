"""Gate, shift and fuse forward: 12 bytes per element, two reads of the clip, one write. The steps move more."""

import math

import pytest

from benchmarks.gate_shift_fuse import FORWARD
from benchmarks.neighbours import GATED_CLIPS


@pytest.mark.parametrize("shape", GATED_CLIPS, ids=str)
@pytest.mark.parametrize("side", FORWARD)
def test_forward(timed, shape, side):
    timed(f"gate, shift and fuse, forward, {shape}", FORWARD[side](shape), 12 * math.prod(shape))
