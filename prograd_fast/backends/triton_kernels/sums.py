"""Sums for losses and attention: the anchor of sums of exp, and sums over programs in a fixed order."""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

import math

import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024


@triton.jit
def exp_anchor(maximum):
    """The number to subtract before exp: the maximum, or 0 while all classes so far are excluded (-inf)."""
    return tl.where(maximum == float("-inf"), 0.0, maximum)


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
    """Write factor times the sum of `parts` to the 0-d `total`: one program, so the order is fixed."""
    sum_parts[(1,)](parts, total, parts.numel(), factor, BLOCK=BLOCK)


def row_scale(reduction: int, n_rows: int) -> float:
    """The factor of each row: 1/B for the mean (NaN for no rows, as in torch), else 1."""
    if reduction != 1:
        return 1.0
    return 1 / n_rows if n_rows else math.nan
