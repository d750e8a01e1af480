"""The last step of a loss: what the programs gave, added up by one program, so the order is fixed."""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024


@triton.jit(do_not_specialize=["n"])
def sum_parts(parts, total, n, factor: tl.float64, BLOCK: tl.constexpr):
    """Factor times the sum of n numbers."""
    acc: tl.constexpr = parts.dtype.element_ty
    b_sum = tl.zeros([BLOCK], acc)
    for start in range(0, n, BLOCK):
        offsets = start + tl.arange(0, BLOCK)
        b_sum += tl.load(parts + offsets, mask=offsets < n, other=0.0).to(acc)
    tl.store(total, (tl.sum(b_sum, axis=0) * tl.full([], factor, acc)).to(total.dtype.element_ty))


def add_up(parts: Tensor, total: Tensor, factor: float) -> None:
    """Write factor times the sum of `parts` to the 0-d `total`."""
    sum_parts[(1,)](parts, total, parts.numel(), factor, BLOCK=BLOCK)
