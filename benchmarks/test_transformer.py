"""The prompt encoder's operators at CLIP's sizes against eager PyTorch, forward and backward for two cotangents.

Bytes: what the packed operator must read and write once; the other side is charged the same, for the same work.
"""

import pytest
import torch

from benchmarks.transformer import ROWS, WORK


@pytest.mark.parametrize("side", ["ours", "eager"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("work", WORK)
def test_transformer(timed, work, dtype, side):
    one = WORK[work]
    call = one.ours(dtype) if side == "ours" else one.eager(dtype)
    timed(f"{work}, {ROWS} rows, {dtype}", call, one.elements * dtype.itemsize)
