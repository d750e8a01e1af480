"""Guards gate, shift and fuse on Triton: against its formula in float64, and GSF against its authors' module."""

import pytest

from prograd_fast import functional
from prograd_fast.backends.triton_kernels import gate_shift_fuse
from prograd_fast.ops.gate_shift_fuse import gate_shift_fuse_formula
from tests.gpu.triton.support import draw
from tests.neighbours.by_name import Golden
from tests.neighbours.golden_gsf import compare_with_the_authors
from tests.ops.support import DTYPES, accumulation
from tests.tolerances import assert_close

# (B, T, C, H, W), used channels: planes of no power of two, and a channel that passes; one frame, of one position;
# several blocks of a plane; several blocks of channels
CASES = {
    "clips": ((2, 3, 9, 3, 5), 8),
    "one position": ((1, 1, 4, 1, 1), 4),
    "several blocks": ((1, 2, 4, 30, 41), 4),
    "several blocks of channels": ((1, 2, 12, 1, 3), 12),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_gate_shift_fuse(dtype, case, monkeypatch):
    shape, used = CASES[case]
    if case == "several blocks of channels":
        monkeypatch.setattr(gate_shift_fuse, "TILE_BYTES", 256)  # one to four channels at a time
    batch, frames, _, *size = shape
    given = [
        *(draw(*shape, dtype=dtype), draw(batch, 2, frames, *size).tanh().to(dtype)),
        *(draw(2, 2, 3, 3, dtype=accumulation(dtype)), draw(2, dtype=accumulation(dtype))),
    ]
    leaves = [t.requires_grad_() for t in given]
    wide = [t.detach().double().requires_grad_() for t in given]
    gradient = draw(*shape, dtype=dtype, seed=5)
    ours, theirs = functional.gate_shift_fuse(*leaves, used), gate_shift_fuse_formula(*wide, used)
    assert_close(ours, theirs, "formula", dtype)
    ours.backward(gradient)
    theirs.backward(gradient.double())
    for leaf, expected in zip(leaves, wide, strict=True):
        assert_close(leaf.grad, expected.grad, "formula", leaf.dtype)


@pytest.mark.parametrize("dtype", DTYPES[:2])
def test_authors_module(dtype):
    compare_with_the_authors(Golden("gsf", dtype))
