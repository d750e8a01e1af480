"""Operators for landmarks, heat maps and masks, forward with backward.

Bytes, at least: sums along edges 32 a feature of a node (forward: read own and other, write the sum; backward: read
gradient, own and other, write both gradients); local soft-argmax 12 a pixel (read twice, write the gradient); focal
loss 16 a pixel (read logit and label, write the cotangent); structure loss 16 a coordinate (read both, write two
cotangents), and 12 for their sum. What the formulas and autograd move is more.
"""

import pytest

from benchmarks.landmarks import EDGE_SUMS, FOCAL, SOFT_ARGMAX, STRUCTURE

CASES = {  # sides; sizes in the caches and beyond them; bytes of one
    "sums along edges": (EDGE_SUMS, (2, 256), 32 * 98 * 128),
    "local soft-argmax": (SOFT_ARGMAX, (98, 64 * 98), 12 * 64 * 64),
    "normalised focal loss": (FOCAL, (1, 32), 16 * 448 * 448),
    "structure loss": (STRUCTURE, (64, 2**15), 28 * 98 * 2),
}


@pytest.mark.parametrize(
    ("name", "size", "side"),
    [(name, size, side) for name, (sides, sizes, _) in CASES.items() for size in sizes for side in sides],
)
def test_with_gradient(timed, name, size, side):
    sides, _, least = CASES[name]
    timed(f"{name}, {size}", sides[side](size), least * size)
