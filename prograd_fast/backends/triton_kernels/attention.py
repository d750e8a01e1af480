"""Attention of packed segments with a shared prefix: the forward pass, and what the backward pass computes again.

A program has some whole segments of one group, and one head. It goes through their queries in tiles, and for each tile
through the keys that any of its queries sees: those of the prefix, then of the rows. A query sees the keys start ...
end - 1, so segments that share a tile are kept apart by masks alone (and what is not finite in one of them spreads to
the others of the tile), and a segment may be of any length, which nobody needs to know beforehand. Where the prefix is
the first rows of the same matrix, one more program has the queries of those rows.

Products of float16 and bfloat16 have operands of that dtype, softmax weights and gradients of scores included, and add
up in float32. Those of float32 follow `product_precision`: three TF32 products, or one where PyTorch may use TF32.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

from dataclasses import dataclass
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from prograd_fast.backends.triton_kernels.launch import on_device, product_operand, product_precision
from prograd_fast.backends.triton_kernels.sums import exp_anchor

PROGRAM_ROWS = 64  # of the segments of a program, about
LAST_ROWS = 16  # queries of a tile at most, where there is one for each segment
BOUNDARIES = 64  # room for where its segments begin, and where the last one ends
NEVER = tl.constexpr(2**31 - 1)


@triton.jit
def program_segments(offsets, n_segments, per_program, n_leading, LAST: tl.constexpr, BOUNDARIES: tl.constexpr):
    """The program's segments: where they begin (rising, then `NEVER`), rows and queries, as first and one past last.

    The program after the last segment has the leading rows; `is_leading` comes last.
    """
    first = tl.program_id(0) * per_program
    last = tl.minimum(first + per_program, n_segments)
    is_leading = first >= n_segments
    o_boundaries = first + tl.arange(0, BOUNDARIES)
    boundaries = tl.load(offsets + o_boundaries, mask=o_boundaries <= last, other=NEVER).to(tl.int32)
    row = tl.load(offsets + tl.minimum(first, n_segments)).to(tl.int32)
    end_row = tl.load(offsets + last).to(tl.int32)
    if LAST:
        return boundaries, row, end_row, first, last, is_leading
    else:
        first_query, end_query = tl.where(is_leading, 0, row), tl.where(is_leading, n_leading, end_row)
        return boundaries, row, end_row, first_query, end_query, is_leading


@triton.jit
def seen_keys(queries, end_query, offsets, boundaries, n_prefix, is_leading, LAST: tl.constexpr):
    """Each query sees the prefix up to `end_prefix`, and the rows start ... end - 1; one beyond the last sees no rows.

    A leading row sees the prefix up to itself, and no rows.
    """
    inside = (queries < end_query) & (not is_leading)
    end_prefix = tl.where(is_leading, tl.minimum(queries + 1, n_prefix), n_prefix)
    if LAST:
        start = tl.load(offsets + queries, mask=inside, other=NEVER).to(tl.int32)
        end = tl.load(offsets + queries + 1, mask=inside, other=0).to(tl.int32)
        return end_prefix, start, end
    else:
        start = tl.max(tl.where(boundaries[None, :] <= queries[:, None], boundaries[None, :], 0), axis=1)
        return end_prefix, tl.where(inside, start, NEVER), tl.where(inside, queries + 1, 0)


@triton.jit
def load_rows(pointer, stride, rows, end_row, width, kind: tl.constexpr, WIDTH: tl.constexpr):
    """Some rows of one head as `kind`, zero beyond the last."""
    columns = tl.arange(0, WIDTH)
    inside = (rows < end_row)[:, None] & (columns < width)[None, :]
    return tl.load(pointer + rows.to(tl.int64)[:, None] * stride + columns[None, :], mask=inside, other=0.0).to(kind)


@triton.jit
def store_rows(pointer, stride, rows, end_row, width, values, WIDTH: tl.constexpr):
    """The reverse of `load_rows`."""
    columns = tl.arange(0, WIDTH)
    inside = (rows < end_row)[:, None] & (columns < width)[None, :]
    at = pointer + rows.to(tl.int64)[:, None] * stride + columns[None, :]
    tl.store(at, values.to(pointer.dtype.element_ty), mask=inside)


@triton.jit
def product(a, b, total, storage: tl.constexpr, PRECISION: tl.constexpr):
    """Total + a·b, where `a` is rounded as if it were stored; `b` comes from memory, as `product_operand` says."""
    return tl.dot(a.to(storage).to(b.dtype), b, total, input_precision=PRECISION, out_dtype=total.dtype)


@triton.jit
def _attend(
    q, keys, stride, start, end, width, scale, top, total, out,
    storage: tl.constexpr, PRECISION: tl.constexpr, KEYS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Online softmax over more keys: maximum and sum of the weights so far, and the weighted values."""
    acc: tl.constexpr = out.dtype
    end_key = tl.max(end, axis=0)
    values = keys + tl.num_programs(1) * width
    for first in range(tl.min(start, axis=0), end_key, KEYS):
        at = first + tl.arange(0, KEYS)
        k = load_rows(keys, stride, at, end_key, width, q.dtype, WIDTH)
        v = load_rows(values, stride, at, end_key, width, q.dtype, WIDTH)
        s = product(q, tl.trans(k), tl.zeros([q.shape[0], KEYS], acc), storage, PRECISION) * scale
        seen = (at[None, :] >= start[:, None]) & (at[None, :] < end[:, None])
        s = tl.where(seen, s, float("-inf"))
        new_top = tl.maximum(top, tl.max(s, axis=1))
        anchor = exp_anchor(new_top)
        p, keep = tl.exp(s - anchor[:, None]), tl.exp(top - anchor)
        total = total * keep + tl.sum(p, axis=1)
        out = product(p, v, out * keep[:, None], storage, PRECISION)
        top = new_top
    return top, total, out


@triton.jit
def attend_all(
    q, key_value, prefix, s_key_row, s_prefix_row, end_prefix, start, end, width, scale, acc: tl.constexpr,
    storage: tl.constexpr, PRECISION: tl.constexpr, KEYS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Attend from a tile of queries to prefix and rows: maximum m of the scores, 1/∑exp(s - m), and the result."""
    top = tl.full([q.shape[0]], float("-inf"), acc)
    total = tl.zeros([q.shape[0]], acc)
    out = tl.zeros([q.shape[0], WIDTH], acc)
    top, total, out = _attend(
        q, prefix, s_prefix_row, tl.zeros_like(end_prefix), end_prefix, width, scale, top, total, out,
        storage, PRECISION, KEYS, WIDTH,
    )  # fmt: skip
    top, total, out = _attend(
        q, key_value, s_key_row, start, end, width, scale, top, total, out, storage, PRECISION, KEYS, WIDTH
    )
    inverse = 1.0 / tl.where(total == 0, 1.0, total)  # a query beyond the last may see nothing
    return exp_anchor(top), inverse, out * inverse[:, None]


@triton.jit(do_not_specialize=["n_segments", "per_program", "n_prefix", "n_leading"])
def attention(
    query, key_value, prefix, offsets, out,
    s_query_group, s_query_row, s_key_group, s_key_row, s_prefix_group, s_prefix_row, s_out_group, s_out_row,
    n_segments, per_program, n_prefix, n_leading, width, scale: tl.float64,
    LAST: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
    KEY_ROWS: tl.constexpr, WIDTH: tl.constexpr, BOUNDARIES: tl.constexpr,
):  # fmt: skip
    """A program's queries, tile by tile."""
    storage: tl.constexpr = query.dtype.element_ty
    acc: tl.constexpr = tl.float64 if storage == tl.float64 else tl.float32
    column, group = tl.program_id(1) * width, tl.program_id(2).to(tl.int64)
    boundaries, _, _, first_query, end_query, is_leading = program_segments(
        offsets, n_segments, per_program, n_leading, LAST, BOUNDARIES
    )
    n_before = tl.full([], n_leading, tl.int64)  # rows before those of the segments
    query += group * s_query_group + column
    key_value += group * s_key_group + n_before * s_key_row + column
    prefix += group * s_prefix_group + column
    out += group * s_out_group + column
    if not LAST:
        n_before = tl.where(is_leading, 0, n_before)
        query += n_before * s_query_row
        out += n_before * s_out_row
    b_scale = tl.full([], scale, acc)
    for first in range(first_query, end_query, ROWS):
        queries = first + tl.arange(0, ROWS)
        end_prefix, start, end = seen_keys(queries, end_query, offsets, boundaries, n_prefix, is_leading, LAST)
        q = load_rows(query, s_query_row, queries, end_query, width, OPERAND, WIDTH)
        _top, _inverse, b_out = attend_all(
            q, key_value, prefix, s_key_row, s_prefix_row, end_prefix, start, end, width, b_scale, acc,
            storage, PRECISION, KEYS, WIDTH,
        )  # fmt: skip
        store_rows(out, s_out_row, queries, end_query, width, b_out, WIDTH)


@dataclass(frozen=True)
class Programs:
    """How the segments and the leading rows are shared out."""

    n: int  # of one group and head
    n_segments: int
    per_program: int  # segments

    @classmethod
    def of(cls, offsets: Tensor, n_rows: int, leading: int, last: bool) -> "Programs":
        """About PROGRAM_ROWS of the `n_rows` in each, judged by their mean length: the lengths are on the device."""
        n_segments = offsets.numel() - 1
        per_program = min(max(1, PROGRAM_ROWS * n_segments // max(1, n_rows)), BOUNDARIES - 1)
        n = triton.cdiv(n_segments, per_program) + (leading > 0 and not last)
        return cls(n, n_segments, per_program)


def tiles(query: Tensor, heads: int, last: bool) -> dict[str, Any]:
    """The constants that forward and backward are compiled with.

    ROWS queries make a tile, all that a program has where registers suffice, and KEYS keys; KEY_ROWS queries at a time
    go into the gradients of keys. `tools/kernels/triton_gate.py` tells what larger ones would spill.
    """
    width = max(16, triton.next_power_of_2(query.shape[2] // heads))
    if query.element_size() == 2:
        rows, keys, key_rows, warps = 64, 16 if last and width <= 64 else 32, 32, 4 if width <= 64 else 8
    elif width <= 64:
        rows, keys, key_rows, warps = 32, 16 if width <= 32 else 32, 16, 8
    else:
        rows, keys, key_rows, warps = 16, 16, 16, 8
    most = LAST_ROWS if last else rows
    return {
        "LAST": last, "OPERAND": product_operand(query.dtype), "PRECISION": product_precision(query.dtype),
        "ROWS": min(rows, most), "KEYS": keys, "KEY_ROWS": min(key_rows, most), "WIDTH": width,
        "BOUNDARIES": BOUNDARIES, "num_warps": warps, "num_stages": 1,  # most loops end after one or two tiles
    }  # fmt: skip


def shared_prefix_attention_out(
    query: Tensor,
    key_value: Tensor,
    prefix: Tensor | None,
    leading: int,
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
    programs = Programs.of(offsets, key_value.shape[1] - leading, leading, last)
    n_prefix = leading if prefix is None else prefix.shape[1]
    shared = key_value if prefix is None else prefix
    with on_device(query):
        attention[(programs.n, heads, query.shape[0])](
            query, key_value, shared, offsets.contiguous(), out,
            *query.stride()[:2], *key_value.stride()[:2], *shared.stride()[:2], *out.stride()[:2],
            programs.n_segments, programs.per_program, n_prefix, leading, query.shape[2] // heads, scale,
            **tiles(query, heads, last),
        )  # fmt: skip


OPERATORS = (shared_prefix_attention_out,)
