"""Gate, shift and fuse: a program for each plane, one channel of one frame; for the gate's gradient, for a tile.

A program reads the neighbouring frame's plane as well. It is another program's own, next to it in the grid, so that one
of the two finds it in a cache.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

import triton
import triton.language as tl
from torch import Tensor

from prograd_fast.backends.triton_kernels.launch import on_device

LARGEST_BLOCK = 1024  # positions
TILE_BYTES = 2048  # positions times channels of a block of the gate's gradient: with more, float32 spills on sm_100


@triton.jit
def _plane(n_frames, half):
    """Clip, frame and channel of a program."""
    index = tl.program_id(0).to(tl.int64)
    return index // n_frames // (2 * half), index % n_frames, index // n_frames % (2 * half)


@triton.jit
def _interleaved(c, half):
    """Where a channel goes: the halves of its group are interleaved."""
    j = c % half
    return c - j + j % (half // 2) * 2 + j // (half // 2)


@triton.jit
def _gated(x, gate, b, t, c, at, inside, n, n_frames, n_channels, half):
    """A block of a plane, and what the gate lets pass of it."""
    acc: tl.constexpr = tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32
    u = tl.load(x + ((b * n_frames + t) * n_channels + c) * n + at, mask=inside, other=0.0).to(acc)
    g = tl.load(gate + ((b * 2 + c // half) * n_frames + t) * n + at, mask=inside, other=0.0).to(acc)
    return u, g * u


@triton.jit
def gate_shift_means(x, gate, means, n, n_frames, n_channels, half, BLOCK: tl.constexpr):
    """The means of the part of a plane that passes, and of the rest."""
    acc: tl.constexpr = means.dtype.element_ty
    b, t, c = _plane(n_frames, half)
    of_passed, of_rest = tl.zeros([BLOCK], acc), tl.zeros([BLOCK], acc)
    for begin in range(0, n, BLOCK):
        at = begin + tl.arange(0, BLOCK).to(tl.int64)
        u, passed = _gated(x, gate, b, t, c, at, at < n, n, n_frames, n_channels, half)
        of_passed += passed
        of_rest += u - passed
    to = tl.where(c < half, t - 1, t + 1)
    inside = (to >= 0) & (to < n_frames)  # nothing comes to the frame at the other end
    row = means + ((b * 4 + c // half * 2) * half + c % half) * n_frames
    tl.store(row + (to + n_frames) % n_frames, tl.where(inside, tl.sum(of_passed, axis=0) / n, 0.0))
    tl.store(row + half * n_frames + t, tl.sum(of_rest, axis=0) / n)


@triton.jit
def gate_shift_fuse(x, gate, phi, out, n, n_frames, n_channels, half, BLOCK: tl.constexpr):
    """A block of a plane."""
    b, t, c = _plane(n_frames, half)
    at = tl.program_id(1).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    weight = tl.load(phi + (b * 2 * half + c) * n_frames + t).to(phi.dtype.element_ty)
    u, passed = _gated(x, gate, b, t, c, at, at < n, n, n_frames, n_channels, half)
    source = tl.where(c < half, t + 1, t - 1)
    comes = (at < n) & (source >= 0) & (source < n_frames)
    _, came = _gated(x, gate, b, source, c, at, comes, n, n_frames, n_channels, half)
    y = weight * came + (1 - weight) * (u - passed)
    to = ((b * n_frames + t) * n_channels + _interleaved(c, half)) * n
    tl.store(out + to + at, y.to(out.dtype.element_ty), mask=at < n)


@triton.jit
def gate_shift_slopes(gradient, x, gate, d_phi, n, n_frames, n_channels, half, BLOCK: tl.constexpr):
    """Σ gradient·(what came - the rest) of a plane."""
    acc: tl.constexpr = d_phi.dtype.element_ty
    b, t, c = _plane(n_frames, half)
    source = tl.where(c < half, t + 1, t - 1)
    of = gradient + ((b * n_frames + t) * n_channels + _interleaved(c, half)) * n
    sums = tl.zeros([BLOCK], acc)
    for begin in range(0, n, BLOCK):
        at = begin + tl.arange(0, BLOCK).to(tl.int64)
        u, passed = _gated(x, gate, b, t, c, at, at < n, n, n_frames, n_channels, half)
        comes = (at < n) & (source >= 0) & (source < n_frames)
        _, came = _gated(x, gate, b, source, c, at, comes, n, n_frames, n_channels, half)
        sums += tl.load(of + at, mask=at < n, other=0.0).to(acc) * (came + passed - u)
    tl.store(d_phi + (b * 2 * half + c) * n_frames + t, tl.sum(sums, axis=0))


@triton.jit
def gate_shift_fuse_backward(
    gradient, x, gate, phi, d_means, d_x, d_gate, n, n_frames, n_channels, half,
    CHANNELS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Some positions of a group of channels of one frame."""
    acc: tl.constexpr = phi.dtype.element_ty
    index = tl.program_id(0).to(tl.int64)
    t, group, b = index % n_frames, index // n_frames % 2, index // n_frames // 2
    at = tl.program_id(1).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)[None, :]
    to = tl.where(group == 0, t - 1, t + 1)
    moves = (to >= 0) & (to < n_frames)
    of_gate = ((b * 2 + group) * n_frames + t) * n + at
    g = tl.load(gate + of_gate, mask=at < n, other=0.0).to(acc)
    sums = tl.zeros([CHANNELS, BLOCK], acc)
    for begin in range(0, half, CHANNELS):
        j = begin + tl.arange(0, CHANNELS).to(tl.int64)[:, None]
        there, c = j < half, group * half + j
        inside = there & (at < n)
        number = (b * 2 * half + c) * n_frames
        pair = ((b * 4 + group * 2) * half + j) * n_frames
        slope = 1 - tl.load(phi + number + t, mask=there, other=0.0).to(acc)
        offset = tl.load(d_means + pair + half * n_frames + t, mask=there, other=0.0).to(acc) / n
        other_slope = tl.load(phi + number + to, mask=there & moves, other=0.0).to(acc)
        other_offset = tl.load(d_means + pair + to, mask=there & moves, other=0.0).to(acc) / n
        place = _interleaved(c, half)
        own = tl.load(gradient + ((b * n_frames + t) * n_channels + place) * n + at, mask=inside, other=0.0).to(acc)
        other = tl.load(
            gradient + ((b * n_frames + to) * n_channels + place) * n + at, mask=inside & moves, other=0.0
        ).to(acc)
        of_x = ((b * n_frames + t) * n_channels + c) * n + at
        u = tl.load(x + of_x, mask=inside, other=0.0).to(acc)
        d_rest = slope * own + offset
        d_passed = other_slope * other + other_offset - d_rest
        sums += d_passed * u
        tl.store(d_x + of_x, (d_rest + g * d_passed).to(d_x.dtype.element_ty), mask=inside)
    total = tl.sum(sums, axis=0)[None, :]
    tl.store(d_gate + of_gate, total.to(d_gate.dtype.element_ty), mask=at < n)


def _sizes(x: Tensor, of_channels: Tensor) -> tuple[int, int, int, int]:
    """Positions, frames, channels, channels of a group."""
    return x.shape[3] * x.shape[4], x.shape[1], x.shape[2], of_channels.shape[2]


def _block(n: int) -> int:
    return min(LARGEST_BLOCK, max(32, triton.next_power_of_2(n)))


def gate_shift_means_out(x: Tensor, gate: Tensor, *, means: Tensor) -> None:
    """The operator `gate_shift_means_out` on Triton."""
    n, frames, channels, half = _sizes(x, means)
    if len(x):
        with on_device(x):
            grid = (len(x) * frames * 2 * half,)
            gate_shift_means[grid](x, gate, means, n, frames, channels, half, BLOCK=_block(n))


def gate_shift_fuse_out(x: Tensor, gate: Tensor, phi: Tensor, *, out: Tensor) -> None:
    """The operator `gate_shift_fuse_out` on Triton."""
    n, frames, channels, half = _sizes(x, phi)
    if x.numel():
        with on_device(x):
            grid = (len(x) * frames * 2 * half, triton.cdiv(n, _block(n)))
            gate_shift_fuse[grid](x, gate, phi, out, n, frames, channels, half, BLOCK=_block(n))


def gate_shift_slopes_out(gradient: Tensor, x: Tensor, gate: Tensor, *, d_phi: Tensor) -> None:
    """The operator `gate_shift_slopes_out` on Triton."""
    n, frames, channels, half = _sizes(x, d_phi)
    if len(x):
        with on_device(x):
            grid = (len(x) * frames * 2 * half,)
            gate_shift_slopes[grid](gradient, x, gate, d_phi, n, frames, channels, half, BLOCK=_block(n))


def gate_shift_fuse_backward_out(
    gradient: Tensor, x: Tensor, gate: Tensor, phi: Tensor, d_means: Tensor, *, d_x: Tensor, d_gate: Tensor
) -> None:
    """The operator `gate_shift_fuse_backward_out` on Triton."""
    n, frames, channels, half = _sizes(x, phi)
    if x.numel():
        block = min(256, _block(n))
        with on_device(x):
            grid = (len(x) * 2 * frames, triton.cdiv(n, block))
            gate_shift_fuse_backward[grid](
                gradient, x, gate, phi, d_means, d_x, d_gate, n, frames, channels, half,
                CHANNELS=TILE_BYTES // x.element_size() // block, BLOCK=block,
            )  # fmt: skip


OPERATORS = (gate_shift_means_out, gate_shift_fuse_out, gate_shift_slopes_out, gate_shift_fuse_backward_out)
