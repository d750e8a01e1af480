"""Losses of prediction minus target: value and gradient in one pass, partial sums, and one small launch over those."""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

import math

import triton
import triton.language as tl
from torch import Tensor

from prograd_fast.backends.triton_kernels.launch import into_contiguous, on_device
from prograd_fast.backends.triton_kernels.sums import add_up

BLOCK = 4096  # elements of a program, 16 for each of 256 threads


@triton.jit(do_not_specialize=["n_vectors"])
def differences(
    prediction, target, parts, cotangents, n_vectors,
    omega1: tl.float64, omega2: tl.float64, epsilon: tl.float64, shift: tl.float64, factor: tl.float64,
    SOFT_WING: tl.constexpr, VECTOR: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Sum of the function of a block of differences, and the block's cotangents."""
    acc: tl.constexpr = parts.dtype.element_ty
    n = n_vectors.to(tl.int64) * VECTOR
    offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = offsets < n
    x = tl.load(prediction + offsets, mask=inside, other=0.0).to(acc)
    t = tl.load(target + offsets, mask=inside, other=0.0).to(acc)
    difference = x - t  # 0 beyond the last element, where both functions are 0
    if SOFT_WING:
        b_omega2, b_epsilon = tl.full([], omega2, acc), tl.full([], epsilon, acc)
        distance = tl.abs(difference)
        linear = distance < tl.full([], omega1, acc)
        # 0 and NaN as they are
        sign = tl.where(difference > 0, 1.0, tl.where(difference < 0, -1.0, difference)).to(acc)
        value = tl.where(linear, distance, b_omega2 * tl.log(1.0 + distance / b_epsilon) + tl.full([], shift, acc))
        slope = sign * tl.where(linear, 1.0, b_omega2 / (b_epsilon + distance))
    else:
        value = difference * difference
        slope = 2.0 * difference
    tl.store(parts + tl.program_id(0), tl.sum(value.to(acc), axis=0))
    slope *= tl.full([], factor, acc)
    tl.store(cotangents + offsets, slope.to(cotangents.dtype.element_ty), mask=inside)


@into_contiguous
def difference_loss_out(
    prediction: Tensor,
    target: Tensor,
    soft_wing: bool,
    omega1: float,
    omega2: float,
    epsilon: float,
    factor: float,
    *,
    loss: Tensor,
    cotangents: Tensor,
) -> None:
    """The operator `difference_loss_out` on Triton: two launches, and no value read back."""
    prediction, target = prediction.contiguous(), target.contiguous()
    n = prediction.numel()
    vector = math.gcd(8, n)
    shift = omega1 - omega2 * math.log1p(omega1 / epsilon)
    parts = loss.new_empty(triton.cdiv(n, BLOCK))
    with on_device(prediction):
        if n:
            differences[(parts.numel(),)](
                prediction, target, parts, cotangents, n // vector, omega1, omega2, epsilon, shift, factor,
                SOFT_WING=soft_wing, VECTOR=vector, BLOCK=BLOCK, num_warps=8,
            )  # fmt: skip
        add_up(parts, loss, factor)


OPERATORS = (difference_loss_out,)
