"""Affine shift and its backward: a launch for each group of channels, which move alike."""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

from collections.abc import Iterator

import triton
import triton.language as tl
from torch import Tensor

from prograd_fast.backends.triton_kernels.launch import on_device

BLOCK = 1024


@triton.jit
def _channel(first, size, n_channels):
    """The channel of all pictures that a program has, the index of its picture and channel in memory."""
    index = tl.program_id(0).to(tl.int64)
    return index // size * n_channels + first + index % size


@triton.jit
def _moved(x, at, n, offset, period):
    """Positions of a channel `offset` earlier, zero where that is in another run of `period` positions."""
    acc: tl.constexpr = tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32
    place = at % period - offset
    return tl.load(x + at - offset, mask=(at < n) & (place >= 0) & (place < period), other=0.0).to(acc)


@triton.jit(do_not_specialize=["first", "size", "offset"])
def affine_shift(
    x, scale, bias, out, n, offset, period, first, size, n_channels,
    HAS_SCALE: tl.constexpr, HAS_BIAS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A block of one channel."""
    acc: tl.constexpr = tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32
    channel = _channel(first, size, n_channels)
    at = tl.program_id(1).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    y = _moved(x + channel * n, at, n, offset, period)
    if HAS_SCALE:
        y *= tl.load(scale + channel).to(acc)
    if HAS_BIAS:
        y += tl.load(bias + channel * n + at, mask=at < n, other=0.0).to(acc)
    tl.store(out + channel * n + at, y.to(out.dtype.element_ty), mask=at < n)


@triton.jit(do_not_specialize=["first", "size", "offset"])
def affine_shift_backward(
    gradient, x, scale, d_x, d_scale, n, offset, period, first, size, n_channels, BLOCK: tl.constexpr
):
    """One channel, and its sum for the scale."""
    acc: tl.constexpr = tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32
    channel = _channel(first, size, n_channels)
    factor = tl.load(scale + channel).to(acc)
    sums = tl.zeros([BLOCK], acc)
    for begin in range(0, n, BLOCK):
        at = begin + tl.arange(0, BLOCK).to(tl.int64)
        h = _moved(gradient + channel * n, at, n, offset, period)
        sums += h * tl.load(x + channel * n + at, mask=at < n, other=0.0).to(acc)
        tl.store(d_x + channel * n + at, (factor * h).to(d_x.dtype.element_ty), mask=at < n)
    tl.store(d_scale + channel, tl.sum(sums, axis=0))


def _groups(x: Tensor, groups: list[int], axes: list[int], sign: int) -> Iterator[tuple[int, ...]]:
    """For each group that is not empty: positions, offset, period, first channel and size."""
    positions, first = x.numel() // (x.shape[0] * x.shape[1]), 0
    for size, axis in zip(groups, axes, strict=True):
        step = x.stride(1 + abs(axis)) if axis else 0
        period = step * x.shape[1 + abs(axis)] if axis else positions
        if size:
            yield positions, sign * step * (1 if axis > 0 else -1), period, first, size
        first += size


def affine_shift_out(
    x: Tensor, scale: Tensor | None, bias: Tensor | None, groups: list[int], axes: list[int], *, out: Tensor
) -> None:
    """The operator `affine_shift_out` on Triton."""
    if x.numel() == 0:
        return
    flags = {"HAS_SCALE": scale is not None, "HAS_BIAS": bias is not None}
    with on_device(x):
        for n, *move, size in _groups(x, groups, axes, 1):
            grid = (x.shape[0] * size, triton.cdiv(n, BLOCK))
            affine_shift[grid](x, scale, bias, out, n, *move, size, x.shape[1], **flags, BLOCK=BLOCK)


def affine_shift_backward_out(
    gradient: Tensor, x: Tensor, scale: Tensor, groups: list[int], axes: list[int], *, d_x: Tensor, d_scale: Tensor
) -> None:
    """The operator `affine_shift_backward_out` on Triton."""
    if x.numel() == 0:
        d_scale.zero_()
        return
    with on_device(x):
        for n, *move, size in _groups(x, groups, axes, -1):
            operands = gradient, x, scale, d_x, d_scale
            affine_shift_backward[(x.shape[0] * size,)](*operands, n, *move, size, x.shape[1], BLOCK=BLOCK)


OPERATORS = (affine_shift_out, affine_shift_backward_out)
