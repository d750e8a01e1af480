"""One optimizer step on two gradients that are there already.

Bytes: 40 per element for projection and AdamW (a, b for the conflict test; a, b, θ, m, v; write θ, m, v), 28 for AdamW
alone. The formulations that are assembled from smaller operators move more; their share counts what had to be moved.
"""

import pytest

from benchmarks.compare import ADAMW_BYTES, FLOOR, SLOW_COMPILE, STEP_BYTES
from benchmarks.steps import CONTEXT, LARGE, MANY, STEPS, elements

CASES = {"16x512": CONTEXT, "10^7": LARGE, "200 tensors": MANY}


SIDES = [(case, side) for case in CASES for side in STEPS if (case, side) != ("200 tensors", SLOW_COMPILE)]


@pytest.mark.parametrize(("case", "side"), SIDES)
def test_step(timed, case, side):
    per_element = ADAMW_BYTES if side == FLOOR else STEP_BYTES
    timed(f"step, {case}", STEPS[side](CASES[case]), per_element * elements(CASES[case]))
