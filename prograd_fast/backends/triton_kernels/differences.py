"""Losses of prediction minus target: value and gradient in one pass, partial sums, and one small launch over those.

That of landmarks and their offsets sends the offsets' gradient back in a launch of its own.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from prograd_fast.backends.triton_kernels.launch import into_contiguous, on_device
from prograd_fast.backends.triton_kernels.segments import sorted_ends
from prograd_fast.backends.triton_kernels.sums import add_up

BLOCK = 4096  # elements of a program, 16 for each of 256 threads
STRUCTURE_BLOCK = 512


@triton.jit
def soft_wing(difference, omega1, omega2, epsilon, shift, acc: tl.constexpr):
    """Value and slope of Soft Wing's function."""
    b_omega2, b_epsilon = tl.full([], omega2, acc), tl.full([], epsilon, acc)
    distance = tl.abs(difference)
    linear = distance < tl.full([], omega1, acc)
    # 0 and NaN as they are
    sign = tl.where(difference > 0, 1.0, tl.where(difference < 0, -1.0, difference)).to(acc)
    value = tl.where(linear, distance, b_omega2 * tl.log(1.0 + distance / b_epsilon) + tl.full([], shift, acc))
    return value, sign * tl.where(linear, 1.0, b_omega2 / (b_epsilon + distance))


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
        value, slope = soft_wing(difference, omega1, omega2, epsilon, shift, acc)
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


@triton.jit
def difference_at(prediction, target, at, mask, acc: tl.constexpr):
    """Prediction minus target."""
    x = tl.load(prediction + at, mask=mask, other=0.0).to(acc)
    return x - tl.load(target + at, mask=mask, other=0.0).to(acc)


@triton.jit(do_not_specialize=["n", "size", "axes", "n_nodes"])
def structure_losses(
    prediction, target, columns, order, starts, parts, of_points, slopes, n, size, axes, n_nodes,
    omega1: tl.float64, omega2: tl.float64, epsilon: tl.float64, shift: tl.float64, factor: tl.float64,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Of a block of coordinates: both sums, the cotangents of the points, and the slopes of the offsets."""
    acc: tl.constexpr = parts.dtype.element_ty
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    first, node = at // size * size, at % size // axes
    difference = difference_at(prediction, target, at, inside, acc)
    value, slope = soft_wing(difference, omega1, omega2, epsilon, shift, acc)
    tl.store(parts + tl.program_id(0), tl.sum(value, axis=0))
    b_factor = tl.full([], factor, acc)
    tl.store(of_points + at, (b_factor * slope).to(of_points.dtype.element_ty), mask=inside)
    begin = tl.load(starts + node, mask=inside, other=0).to(tl.int64)
    end = tl.load(starts + node + 1, mask=inside, other=0).to(tl.int64)
    share = (1.0 / tl.maximum(end - begin, 1).to(tl.float32)).to(acc)  # the authors' matrix is float32
    offset = -difference
    for k in range(0, tl.max(end - begin, axis=0)):
        here = begin + k < end
        edge = tl.load(order + begin + k, mask=here, other=0).to(tl.int64)
        column = tl.load(columns + edge, mask=here, other=0).to(tl.int64)
        known = (column >= 0) & (column < n_nodes)
        neighbour = difference_at(prediction, target, first + column * axes + at % axes, here & known, acc)
        offset += share * tl.where(known, neighbour, float("nan"))
    value, slope = soft_wing(offset, omega1, omega2, epsilon, shift, acc)
    tl.store(parts + tl.num_programs(0) + tl.program_id(0), tl.sum(value, axis=0))
    tl.store(slopes + at, b_factor * slope, mask=inside)


@triton.jit(do_not_specialize=["n", "size", "axes", "n_nodes"])
def structure_back(slopes, rows, order, starts, row_starts, of_offsets, n, size, axes, n_nodes, BLOCK: tl.constexpr):
    """The offsets' cotangents of a block of coordinates: what each node's listeners send back, minus its own."""
    acc: tl.constexpr = slopes.dtype.element_ty
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    first, node = at // size * size, at % size // axes
    back = -tl.load(slopes + at, mask=inside, other=0.0).to(acc)
    begin = tl.load(starts + node, mask=inside, other=0).to(tl.int64)
    end = tl.load(starts + node + 1, mask=inside, other=0).to(tl.int64)
    for k in range(0, tl.max(end - begin, axis=0)):
        here = begin + k < end
        edge = tl.load(order + begin + k, mask=here, other=0).to(tl.int64)
        row = tl.load(rows + edge, mask=here, other=0).to(tl.int64)
        known = (row >= 0) & (row < n_nodes)
        of_row = tl.load(row_starts + row, mask=here & known, other=0).to(tl.int64)
        count = tl.load(row_starts + row + 1, mask=here & known, other=1).to(tl.int64) - of_row
        sent = tl.load(slopes + first + row * axes + at % axes, mask=here & known, other=0.0).to(acc)
        back += tl.where(known, (1.0 / count.to(tl.float32)).to(acc) * sent, float("nan"))
    tl.store(of_offsets + at, back.to(of_offsets.dtype.element_ty), mask=inside)


@into_contiguous
def structure_loss_out(
    prediction: Tensor,
    target: Tensor,
    rows: Tensor,
    columns: Tensor,
    omega1: float,
    omega2: float,
    epsilon: float,
    factor: float,
    *,
    losses: Tensor,
    cotangents: Tensor,
) -> None:
    """The operator `structure_loss_out` on Triton: two launches and one for each sum; no value read back."""
    prediction, target = prediction.contiguous(), target.contiguous()
    rows, columns = rows.contiguous(), columns.contiguous()
    n, (_, n_nodes, axes) = prediction.numel(), prediction.shape
    sizes = n, n_nodes * axes, axes, n_nodes
    shift = omega1 - omega2 * math.log1p(omega1 / epsilon)
    dtype = torch.promote_types(torch.promote_types(prediction.dtype, target.dtype), torch.float32)
    n_parts = triton.cdiv(n, STRUCTURE_BLOCK)
    parts, slopes = prediction.new_empty(2, n_parts, dtype=dtype), prediction.new_empty(n, dtype=dtype)
    of_points, of_offsets = cotangents
    with on_device(prediction):
        if n:
            by_row, by_column = sorted_ends(rows, n_nodes), sorted_ends(columns, n_nodes)
            structure_losses[(n_parts,)](
                prediction, target, columns, *by_row, parts, of_points, slopes, *sizes,
                omega1, omega2, epsilon, shift, factor, BLOCK=STRUCTURE_BLOCK, num_warps=4,
            )  # fmt: skip
            structure_back[(n_parts,)](
                slopes, rows, *by_column, by_row[1], of_offsets, *sizes, BLOCK=STRUCTURE_BLOCK, num_warps=4
            )
        for part, loss in zip(parts, losses, strict=True):
            add_up(part, loss, factor)


OPERATORS = (difference_loss_out, structure_loss_out)
