"""Attention of packed segments with a shared prefix: the forward pass, and what the backward pass computes again.

A program has some whole segments of one group, and one head. It goes through their queries in tiles, and for each tile
through the keys that any of its queries sees: those of the prefix, then of the rows. A query sees the keys start ...
end - 1, so segments that share a tile are kept apart by masks alone (and what is not finite in one of them spreads to
the others of the tile), and a segment may be of any length, which nobody needs to know beforehand.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from prograd_fast.backends.triton_kernels.launch import on_device, product_precision
from prograd_fast.backends.triton_kernels.sums import exp_anchor

ROWS, KEYS = 16, 32  # of a tile of queries, and of keys: with 14 rows to a segment, all rows that the queries see
PROGRAM_ROWS = 64  # of the segments of a program, about
BOUNDARIES = 64  # room for where its segments begin, and where the last one ends
WARPS = 4
NEVER = tl.constexpr(2**31 - 1)


@triton.jit
def program_segments(offsets, n_segments, per_program, LAST: tl.constexpr, BOUNDARIES: tl.constexpr):
    """The program's segments: where they begin (rising, then `NEVER`), rows and queries, as first and one past last."""
    first = tl.program_id(0) * per_program
    last = tl.minimum(first + per_program, n_segments)
    o_boundaries = first + tl.arange(0, BOUNDARIES)
    boundaries = tl.load(offsets + o_boundaries, mask=o_boundaries <= last, other=NEVER).to(tl.int32)
    row, end_row = tl.load(offsets + first).to(tl.int32), tl.load(offsets + last).to(tl.int32)
    if LAST:
        return boundaries, row, end_row, first, last
    else:
        return boundaries, row, end_row, row, end_row


@triton.jit
def own_keys(queries, end_query, offsets, boundaries, LAST: tl.constexpr):
    """Each query sees the rows start ... end - 1; a query beyond the last sees none."""
    inside = queries < end_query
    if LAST:
        start = tl.load(offsets + queries, mask=inside, other=NEVER).to(tl.int32)
        end = tl.load(offsets + queries + 1, mask=inside, other=0).to(tl.int32)
        return start, end
    else:
        start = tl.max(tl.where(boundaries[None, :] <= queries[:, None], boundaries[None, :], 0), axis=1)
        return tl.where(inside, start, NEVER), tl.where(inside, queries + 1, 0)


@triton.jit
def load_rows(pointer, stride, rows, end_row, width, acc: tl.constexpr, WIDTH: tl.constexpr):
    """Some rows of one head, zero beyond the last."""
    columns = tl.arange(0, WIDTH)
    inside = (rows < end_row)[:, None] & (columns < width)[None, :]
    return tl.load(pointer + rows.to(tl.int64)[:, None] * stride + columns[None, :], mask=inside, other=0.0).to(acc)


@triton.jit
def store_rows(pointer, stride, rows, end_row, width, values, WIDTH: tl.constexpr):
    """The reverse of `load_rows`."""
    columns = tl.arange(0, WIDTH)
    inside = (rows < end_row)[:, None] & (columns < width)[None, :]
    at = pointer + rows.to(tl.int64)[:, None] * stride + columns[None, :]
    tl.store(at, values.to(pointer.dtype.element_ty), mask=inside)


@triton.jit
def _attend(
    q, keys, stride, start, end, width, scale, top, total, out,
    PRECISION: tl.constexpr, KEYS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Online softmax over more keys: maximum and sum of the weights so far, and the weighted values."""
    acc: tl.constexpr = q.dtype
    end_key = tl.max(end, axis=0)
    values = keys + tl.num_programs(1) * width
    for first in range(tl.min(start, axis=0), end_key, KEYS):
        at = first + tl.arange(0, KEYS)
        k = load_rows(keys, stride, at, end_key, width, acc, WIDTH)
        v = load_rows(values, stride, at, end_key, width, acc, WIDTH)
        s = tl.dot(q, tl.trans(k), input_precision=PRECISION, out_dtype=acc) * scale
        seen = (at[None, :] >= start[:, None]) & (at[None, :] < end[:, None])
        s = tl.where(seen, s, float("-inf"))
        new_top = tl.maximum(top, tl.max(s, axis=1))
        anchor = exp_anchor(new_top)
        p, keep = tl.exp(s - anchor[:, None]), tl.exp(top - anchor)
        total = total * keep + tl.sum(p, axis=1)
        out = tl.dot(p, v, out * keep[:, None], input_precision=PRECISION, out_dtype=acc)
        top = new_top
    return top, total, out


@triton.jit
def attend_all(
    q, key_value, prefix, s_key_row, s_prefix_row, start, end, n_prefix, width, scale,
    PRECISION: tl.constexpr, KEYS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Attend from a tile of queries to prefix and rows: maximum m of the scores, 1/∑exp(s - m), and the result."""
    acc: tl.constexpr = q.dtype
    top = tl.full([q.shape[0]], float("-inf"), acc)
    total = tl.zeros([q.shape[0]], acc)
    out = tl.zeros([q.shape[0], WIDTH], acc)
    none = tl.zeros_like(start)
    top, total, out = _attend(
        q, prefix, s_prefix_row, none, none + n_prefix, width, scale, top, total, out, PRECISION, KEYS, WIDTH
    )
    top, total, out = _attend(
        q, key_value, s_key_row, start, end, width, scale, top, total, out, PRECISION, KEYS, WIDTH
    )
    inverse = 1.0 / tl.where(total == 0, 1.0, total)  # a query beyond the last may see nothing
    return exp_anchor(top), inverse, out * inverse[:, None]


@triton.jit(do_not_specialize=["n_segments", "per_program", "n_prefix"])
def attention(
    query, key_value, prefix, offsets, out,
    s_query_group, s_query_row, s_key_group, s_key_row, s_prefix_group, s_prefix_row, s_out_group, s_out_row,
    n_segments, per_program, n_prefix, width, scale: tl.float64,
    LAST: tl.constexpr, PRECISION: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, WIDTH: tl.constexpr,
    BOUNDARIES: tl.constexpr,
):  # fmt: skip
    """A program's queries, tile by tile."""
    acc: tl.constexpr = tl.float64 if query.dtype.element_ty == tl.float64 else tl.float32
    column, group = tl.program_id(1) * width, tl.program_id(2).to(tl.int64)
    query += group * s_query_group + column
    key_value += group * s_key_group + column
    prefix += group * s_prefix_group + column
    out += group * s_out_group + column
    b_scale = tl.full([], scale, acc)
    boundaries, _, _, first_query, end_query = program_segments(offsets, n_segments, per_program, LAST, BOUNDARIES)
    for first in range(first_query, end_query, ROWS):
        queries = first + tl.arange(0, ROWS)
        start, end = own_keys(queries, end_query, offsets, boundaries, LAST)
        q = load_rows(query, s_query_row, queries, end_query, width, acc, WIDTH)
        _top, _inverse, b_out = attend_all(
            q, key_value, prefix, s_key_row, s_prefix_row, start, end, n_prefix, width, b_scale, PRECISION, KEYS, WIDTH
        )
        store_rows(out, s_out_row, queries, end_query, width, b_out, WIDTH)


def segments_per_program(offsets: Tensor, key_value: Tensor) -> int:
    """As many as have about PROGRAM_ROWS rows, judged by their mean length: the lengths are on the device."""
    return min(max(1, PROGRAM_ROWS * (offsets.numel() - 1) // key_value.shape[1]), BOUNDARIES - 1)


def tiles(query: Tensor, heads: int, last: bool) -> dict[str, Any]:
    """The constants that forward and backward are compiled with."""
    return {
        "LAST": last, "PRECISION": product_precision(query.dtype), "ROWS": ROWS, "KEYS": KEYS,
        "WIDTH": max(16, triton.next_power_of_2(query.shape[2] // heads)), "BOUNDARIES": BOUNDARIES,
        "num_warps": WARPS, "num_stages": 1,  # most loops end after one or two tiles
    }  # fmt: skip


def shared_prefix_attention_out(
    query: Tensor,
    key_value: Tensor,
    prefix: Tensor,
    offsets: Tensor,
    heads: int,
    scale: float,
    last: bool,
    *,
    out: Tensor,
) -> None:
    """The operator `shared_prefix_attention_out` on Triton: one launch, and no value read back."""
    if not out.numel():
        return
    n_segments, per_program = offsets.numel() - 1, segments_per_program(offsets, key_value)
    with on_device(query):
        attention[(triton.cdiv(n_segments, per_program), heads, query.shape[0])](
            query, key_value, prefix, offsets.contiguous(), out,
            *query.stride()[:2], *key_value.stride()[:2], *prefix.stride()[:2], *out.stride()[:2],
            n_segments, per_program, prefix.shape[1], query.shape[2] // heads, scale, **tiles(query, heads, last),
        )  # fmt: skip


OPERATORS = (shared_prefix_attention_out,)
