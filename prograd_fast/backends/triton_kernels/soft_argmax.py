"""The local soft-argmax of heat maps: a program for each map. The backward is told the peak."""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

import math

import triton
import triton.language as tl
from torch import Tensor

from prograd_fast.backends.triton_kernels.launch import into_contiguous, on_device

BLOCK = 2048  # pixels that a program has at a time


@triton.jit
def first_peak(values, n_pixels, acc: tl.constexpr, BLOCK: tl.constexpr):
    """The place of the first of the largest values, or of the first NaN, of the map at `values`."""
    nowhere = tl.full([BLOCK], n_pixels, tl.int64)
    best, place, nan_place = tl.full([BLOCK], float("-inf"), acc), nowhere, nowhere
    for start in range(0, n_pixels, BLOCK):
        pixels = start + tl.arange(0, BLOCK).to(tl.int64)
        inside = pixels < n_pixels
        x = tl.load(values + pixels, mask=inside, other=float("-inf")).to(acc)
        larger = inside & ((x > best) | (place == n_pixels))  # the first of a lane, whatever it is
        best, place = tl.where(larger, x, best), tl.where(larger, pixels, place)
        nan_place = tl.where(x != x, tl.minimum(nan_place, pixels), nan_place)
    top = tl.max(best, axis=0)
    peak = tl.min(tl.where(best == top, place, n_pixels), axis=0)
    nan_peak = tl.min(nan_place, axis=0)
    return tl.where(nan_peak < n_pixels, nan_peak, peak)


@triton.jit
def window_of(values, peak, height, width, window, temperature, acc: tl.constexpr, WINDOW: tl.constexpr):
    """Of the window around the peak: first row and column, the largest exponent, the sum of weights, and the point."""
    first_row, first_column = peak // width - window // 2, peak % width - window // 2
    i = tl.arange(0, WINDOW)
    row, column = first_row + i // window, first_column + i % window
    given = i < window * window
    inside = given & (row >= 0) & (row < height) & (column >= 0) & (column < width)
    h = tl.load(values + row * width + column, mask=inside, other=0.0).to(acc)
    exponent = tl.where(given, tl.full([], temperature, acc) * h, float("-inf"))
    top = tl.max(exponent, axis=0)
    weight = tl.where(given, tl.exp(exponent - top), 0.0)
    total = tl.sum(weight, axis=0)
    x = first_column.to(acc) + tl.sum(weight * (i % window).to(acc), axis=0) / total
    y = first_row.to(acc) + tl.sum(weight * (i // window).to(acc), axis=0) / total
    return first_row, first_column, top, total, x, y


@triton.jit(do_not_specialize=["height", "width", "window"])
def soft_argmax(
    maps, points, peaks, height, width, window, n_vectors, temperature: tl.float64,
    VECTOR: tl.constexpr, BLOCK: tl.constexpr, WINDOW: tl.constexpr,
):  # fmt: skip
    """The point and the peak of one map."""
    acc: tl.constexpr = tl.float64 if maps.dtype.element_ty == tl.float64 else tl.float32
    program, n_pixels = tl.program_id(0).to(tl.int64), n_vectors.to(tl.int64) * VECTOR
    values = maps + program * n_pixels
    peak = first_peak(values, n_pixels, acc, BLOCK)
    _, _, _, _, x, y = window_of(values, peak, height, width, window, temperature, acc, WINDOW)
    tl.store(peaks + program, peak)
    tl.store(points + 2 * program, x.to(points.dtype.element_ty))
    tl.store(points + 2 * program + 1, y.to(points.dtype.element_ty))


@triton.jit(do_not_specialize=["height", "width", "window"])
def soft_argmax_backward(
    gradient, maps, peaks, d_maps, height, width, window, n_vectors, temperature: tl.float64,
    VECTOR: tl.constexpr, BLOCK: tl.constexpr, WINDOW: tl.constexpr,
):  # fmt: skip
    """The gradient of one map: zeros, but for the window."""
    acc: tl.constexpr = tl.float64 if maps.dtype.element_ty == tl.float64 else tl.float32
    program, n_pixels = tl.program_id(0).to(tl.int64), n_vectors.to(tl.int64) * VECTOR
    values, out, peak = maps + program * n_pixels, d_maps + program * n_pixels, tl.load(peaks + program).to(tl.int64)
    first_row, first_column, top, total, x, y = window_of(values, peak, height, width, window, temperature, acc, WINDOW)
    g_x, g_y = tl.load(gradient + 2 * program).to(acc), tl.load(gradient + 2 * program + 1).to(acc)
    tau = tl.full([], temperature, acc)
    for start in range(0, n_pixels, BLOCK):
        pixels = start + tl.arange(0, BLOCK).to(tl.int64)
        inside = pixels < n_pixels
        row, column = pixels // width, pixels % width
        near = (row >= first_row) & (row < first_row + window)
        near = inside & near & (column >= first_column) & (column < first_column + window)
        h = tl.load(values + pixels, mask=near, other=0.0).to(acc)
        weight = tl.exp(tl.where(near, tau * h - top, 0.0)) / total
        value = tau * weight * ((column.to(acc) - x) * g_x + (row.to(acc) - y) * g_y)
        tl.store(out + pixels, tl.where(near, value, 0.0).to(d_maps.dtype.element_ty), mask=inside)


def _sizes(maps: Tensor, window: int) -> tuple[int, dict[str, int]]:
    n_pixels = maps.shape[2] * maps.shape[3]
    vector = math.gcd(8, n_pixels)
    block = min(BLOCK, max(128, triton.next_power_of_2(n_pixels)))
    return n_pixels // vector, {"VECTOR": vector, "BLOCK": block, "WINDOW": triton.next_power_of_2(window * window)}


@into_contiguous
def local_soft_argmax_out(maps: Tensor, window: int, temperature: float, *, points: Tensor, peaks: Tensor) -> None:
    """The operator `local_soft_argmax_out` on Triton: one launch."""
    maps = maps.contiguous()
    if not points.numel():
        return
    n_vectors, sizes = _sizes(maps, window)
    with on_device(maps):
        soft_argmax[(points.numel() // 2,)](
            maps, points, peaks, *maps.shape[2:], window, n_vectors, temperature, **sizes, num_warps=4
        )


@into_contiguous
def local_soft_argmax_backward_out(
    gradient: Tensor, maps: Tensor, peaks: Tensor, window: int, temperature: float, *, d_maps: Tensor
) -> None:
    """The operator `local_soft_argmax_backward_out` on Triton: one launch."""
    gradient, maps, peaks = gradient.contiguous(), maps.contiguous(), peaks.contiguous()
    if not gradient.numel():
        return
    n_vectors, sizes = _sizes(maps, window)
    with on_device(maps):
        soft_argmax_backward[(gradient.numel() // 2,)](
            gradient, maps, peaks, d_maps, *maps.shape[2:], window, n_vectors, temperature, **sizes, num_warps=4
        )


OPERATORS = (local_soft_argmax_out, local_soft_argmax_backward_out)
