"""The end of a residual branch with the norm that follows it, and its backward pass for K cotangents.

A program has a few whole rows, which it reads once, for all cotangents.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from prograd_fast.backends.triton_kernels.launch import on_device

ELEMENTS = 2048  # of a program, 16 for each of 128 threads; a row that is longer has a program, and more threads


@triton.jit
def _rows_of(n_rows, n_columns, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """The program's rows, which of its tile is there, and where."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, BLOCK)
    inside = (rows < n_rows)[:, None] & (columns < n_columns)[None, :]
    return rows, columns, inside, rows.to(tl.int64)[:, None] * n_columns + columns[None, :]


@triton.jit(do_not_specialize=["n_rows"])
def add_layer_norm(
    x, branch, weight, bias, total, normed, statistics, n_rows, n_columns, eps: tl.float64,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Total, normed rows, mean and 1/√(variance + eps) of the total as it is stored."""
    acc: tl.constexpr = statistics.dtype.element_ty
    dtype: tl.constexpr = total.dtype.element_ty
    rows, columns, inside, at = _rows_of(n_rows, n_columns, ROWS, BLOCK)
    b_x = tl.load(x + at, mask=inside, other=0.0).to(acc)
    stored = (b_x + tl.load(branch + at, mask=inside, other=0.0).to(acc)).to(dtype)
    tl.store(total + at, stored, mask=inside)
    t = stored.to(acc)
    mean = tl.sum(t, axis=1) / n_columns
    centered = tl.where(inside, t - mean[:, None], 0.0)
    rstd = 1.0 / tl.sqrt(tl.sum(centered * centered, axis=1) / n_columns + tl.full([], eps, acc))
    b_weight = tl.load(weight + columns, mask=columns < n_columns, other=0.0).to(acc)
    b_bias = tl.load(bias + columns, mask=columns < n_columns, other=0.0).to(acc)
    b_normed = centered * rstd[:, None] * b_weight[None, :] + b_bias[None, :]
    tl.store(normed + at, b_normed.to(dtype), mask=inside)
    tl.store(statistics + 2 * rows, mean, mask=rows < n_rows)
    tl.store(statistics + 2 * rows + 1, rstd, mask=rows < n_rows)


@triton.jit(do_not_specialize=["n_rows", "n_cotangents"])
def layer_norm_backward(
    d_total, d_normed, total, statistics, weight, n_rows, n_columns, n_cotangents,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Add rstd·(u - mean(u) - h·mean(u·h)) to d_total, u = d_normed·weight, h = (total - mean)·rstd."""
    acc: tl.constexpr = statistics.dtype.element_ty
    rows, columns, inside, at = _rows_of(n_rows, n_columns, ROWS, BLOCK)
    mean = tl.load(statistics + 2 * rows, mask=rows < n_rows, other=0.0).to(acc)
    rstd = tl.load(statistics + 2 * rows + 1, mask=rows < n_rows, other=0.0).to(acc)
    h = (tl.load(total + at, mask=inside, other=0.0).to(acc) - mean[:, None]) * rstd[:, None]
    b_weight = tl.load(weight + columns, mask=columns < n_columns, other=0.0).to(acc)
    for _ in range(0, n_cotangents):
        u = tl.load(d_normed + at, mask=inside, other=0.0).to(acc) * b_weight[None, :]
        mean_u, mean_uh = tl.sum(u, axis=1) / n_columns, tl.sum(u * h, axis=1) / n_columns
        d = tl.load(d_total + at, mask=inside, other=0.0).to(acc)
        d += rstd[:, None] * (u - mean_u[:, None] - h * mean_uh[:, None])
        tl.store(d_total + at, d.to(d_total.dtype.element_ty), mask=inside)
        at += n_rows.to(tl.int64) * n_columns


def _tile(n_columns: int) -> dict[str, Any]:
    block = triton.next_power_of_2(n_columns)
    return {"ROWS": max(1, ELEMENTS // block), "BLOCK": block, "num_warps": min(16, max(4, block // 512))}


def add_layer_norm_out(
    x: Tensor,
    branch: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    *,
    total: Tensor,
    normed: Tensor,
    statistics: Tensor,
) -> None:
    """The operator `add_layer_norm_out` on Triton, one launch."""
    (n_rows, n_columns), tile = x.shape, _tile(x.shape[1])
    if n_rows:
        with on_device(x):
            add_layer_norm[(triton.cdiv(n_rows, tile["ROWS"]),)](
                x, branch, weight, bias, total, normed, statistics, n_rows, n_columns, eps, **tile
            )


def layer_norm_backward_(d_total: Tensor, d_normed: Tensor, total: Tensor, statistics: Tensor, weight: Tensor) -> None:
    """The operator `layer_norm_backward_` on Triton, one launch."""
    (n_rows, n_columns), tile = total.shape, _tile(total.shape[1])
    if n_rows:
        with on_device(total):
            layer_norm_backward[(triton.cdiv(n_rows, tile["ROWS"]),)](
                d_total, d_normed, total, statistics, weight, n_rows, n_columns, d_total.shape[0], **tile
            )


OPERATORS = (add_layer_norm_out, layer_norm_backward_)
