"""A product with the GELU behind it in its epilogue, and the way back: what a tile has is in registers already."""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from prograd_fast.backends.triton_kernels.gelu import gelu_gate
from prograd_fast.backends.triton_kernels.launch import on_device, product_operand, product_precision
from prograd_fast.ops import linear_gelu as in_two_launches

MANY_ROWS = 2048  # from here on tiles of 128 rows are enough for all multiprocessors; below, of 64


@triton.jit
def _multiply(
    a, b, s_a_row, s_b_inner, s_b_column, rows, columns, n_columns, n_inner,
    acc: tl.constexpr, operand: tl.constexpr, PRECISION: tl.constexpr, INNER: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """A tile of a @ b, the rows of `a` at the pointers `a`; WHOLE: n_inner is a multiple of INNER."""
    inner = tl.arange(0, INNER)
    at_a, at_b = a[:, None] + inner[None, :], b + inner[:, None] * s_b_inner + columns[None, :] * s_b_column
    total = tl.zeros([rows.shape[0], columns.shape[0]], acc)
    for first in range(0, n_inner, INNER):
        left = n_inner - first
        if WHOLE:
            tile_a = tl.load(at_a).to(operand)
            tile_b = tl.load(at_b, mask=(columns < n_columns)[None, :], other=0.0).to(operand)
        else:
            tile_a = tl.load(at_a, mask=(inner < left)[None, :], other=0.0).to(operand)
            tile_b = tl.load(at_b, mask=(inner < left)[:, None] & (columns < n_columns)[None, :], other=0.0).to(operand)
        total = tl.dot(tile_a, tile_b, total, input_precision=PRECISION, out_dtype=acc)
        at_a += INNER
        at_b += INNER * s_b_inner
    return total


@triton.jit
def linear_gelu(
    x, weight, bias, hidden, active, s_row, n_rows, n_columns, n_inner,
    operand: tl.constexpr, KIND: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, INNER: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """A tile of hidden = x·weightᵀ + bias, rounded, and of its GELU."""
    rows = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    known = tl.minimum(rows, n_rows - 1).to(tl.int64)
    total = _multiply(
        x + known * s_row, weight, s_row, 1, n_inner, rows, columns, n_columns, n_inner,
        tl.float32, operand, PRECISION, INNER, WHOLE,
    )  # fmt: skip
    if bias is not None:
        total += tl.load(bias + columns, mask=columns < n_columns, other=0.0).to(tl.float32)[None, :]
    inside = (rows < n_rows)[:, None] & (columns < n_columns)[None, :]
    at = rows.to(tl.int64)[:, None] * n_columns + columns[None, :]
    stored = total.to(hidden.dtype.element_ty)
    tl.store(hidden + at, stored, mask=inside)
    u = stored.to(tl.float32)
    gate, _slope = gelu_gate(u, KIND)
    tl.store(active + at, (u * gate).to(active.dtype.element_ty), mask=inside)


@triton.jit
def linear_gelu_backward(
    gradient, weight, hidden, d_hidden, s_cotangent, s_row, n_rows, n_columns, n_inner,
    operand: tl.constexpr, KIND: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, INNER: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """A tile of d_hidden = gelu'(hidden)·(gradient·weight), of one cotangent."""
    cotangent = tl.program_id(2).to(tl.int64)
    rows = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    known = tl.minimum(rows, n_rows - 1).to(tl.int64)
    total = _multiply(
        gradient + cotangent * s_cotangent + known * s_row, weight, s_row, n_columns, 1, rows, columns, n_columns,
        n_inner, tl.float32, operand, PRECISION, INNER, WHOLE,
    )  # fmt: skip
    inside = (rows < n_rows)[:, None] & (columns < n_columns)[None, :]
    at = rows.to(tl.int64)[:, None] * n_columns + columns[None, :]
    u = tl.load(hidden + at, mask=inside, other=0.0).to(tl.float32)
    gate, slope = gelu_gate(u, KIND)
    product = total.to(d_hidden.dtype.element_ty).to(tl.float32) * (gate + u * slope)
    to = d_hidden + cotangent * n_rows * n_columns + at
    tl.store(to, product.to(d_hidden.dtype.element_ty), mask=inside)


def _tiles(x: Tensor, n_rows: int, n_columns: int, n_inner: int) -> tuple[tuple[int, int], dict[str, Any]]:
    """The grid of a product, and its constants."""
    rows, columns = (128 if n_rows >= MANY_ROWS else 64), 64 * 4 // x.itemsize
    inner = columns // 2
    constants = {
        "operand": product_operand(x.dtype), "PRECISION": product_precision(x.dtype),
        "ROWS": rows, "COLUMNS": columns, "INNER": inner, "WHOLE": n_inner % inner == 0,
        "num_warps": rows // 16, "num_stages": 3,
    }  # fmt: skip
    return (triton.cdiv(n_columns, columns), triton.cdiv(n_rows, rows)), constants


def linear_gelu_out(
    x: Tensor, weight: Tensor, bias: Tensor | None, approximate: int, *, hidden: Tensor, active: Tensor
) -> None:
    """The operator `linear_gelu_out` on Triton, one launch; float64, which has no tensor cores here, takes two."""
    n_rows, n_columns, n_inner = *hidden.shape, x.shape[1]
    if x.dtype == torch.float64 or n_inner == 0:
        return in_two_launches.linear_gelu(x, weight, bias, approximate, hidden=hidden, active=active)
    if hidden.numel():
        grid, constants = _tiles(x, n_rows, n_columns, n_inner)
        with on_device(x):
            linear_gelu[grid](
                x, weight, bias, hidden, active, x.stride(0), n_rows, n_columns, n_inner, KIND=approximate, **constants
            )


def linear_gelu_backward_out(
    gradient: Tensor, weight: Tensor, hidden: Tensor, approximate: int, *, d_hidden: Tensor
) -> None:
    """The operator `linear_gelu_backward_out` on Triton, one launch for all cotangents; float64 takes two."""
    cotangents, n_rows, n_columns, n_inner = *d_hidden.shape, gradient.shape[2]
    if gradient.dtype == torch.float64 or n_inner == 0:
        return in_two_launches.linear_gelu_backward(gradient, weight, hidden, approximate, d_hidden=d_hidden)
    if d_hidden.numel():
        grid, constants = _tiles(gradient, n_rows, n_columns, n_inner)
        with on_device(gradient):
            linear_gelu_backward[grid[0], grid[1], cotangents](
                gradient, weight, hidden, d_hidden, gradient.stride(0), gradient.stride(1), n_rows, n_columns, n_inner,
                KIND=approximate, **constants,
            )  # fmt: skip


OPERATORS = (linear_gelu_out, linear_gelu_backward_out)
