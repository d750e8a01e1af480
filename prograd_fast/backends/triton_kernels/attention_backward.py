"""The backward pass of `attention`, for K cotangents: one launch that does all of it but the sums of the prefix.

It has a file of its own, so that the forward pass can be read without it: together they would have 400 lines.

A program has the same segments as in the forward pass, or the leading rows. Queries, keys and values come from memory
once; what a program reads again, for another cotangent or as rows that are now keys, comes from the caches, where it
fits by far.

1. Tile by tile of queries: the forward pass again, then from maximum m, 1/∑exp(s - m) and D = ∑p·e = dO·O the
   gradient of the queries. These numbers (one D for each cotangent) are kept for what follows.
2. Tile by tile of keys, of the rows and of the prefix: their gradients, over the queries that see them. Nobody else's
   queries see the rows; those of the prefix are added up over all programs by `add_partials`, in a fixed order.

Its loops hold few tiles at a time: D is finished for every cotangent before the first gradient, and wide heads of
float32 take small tiles, so that nothing is spilled.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

import torch
import triton
import triton.language as tl
from torch import Tensor

from prograd_fast.backends.triton_kernels.attention import (
    Programs,
    attend_all,
    load_rows,
    product,
    program_segments,
    seen_keys,
    store_rows,
    tiles,
)
from prograd_fast.backends.triton_kernels.launch import on_device

N_STATISTICS = tl.constexpr(2)  # m and 1/∑; the D of the cotangents come after them
PARTIALS_BLOCK, COLUMNS_BLOCK = 16, 128


@triton.jit
def _add_query_gradient(
    d_q, q, d_out, d, top, inverse, keys, stride, start, end, width, scale,
    storage: tl.constexpr, PRECISION: tl.constexpr, KEYS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Add ds·k of more keys to the gradient of a tile of queries, ds = p·(e - D)."""
    acc: tl.constexpr = d_q.dtype
    end_key = tl.max(end, axis=0)
    values = keys + tl.num_programs(1) * width
    for first in range(tl.min(start, axis=0), end_key, KEYS):
        at = first + tl.arange(0, KEYS)
        k = load_rows(keys, stride, at, end_key, width, q.dtype, WIDTH)
        v = load_rows(values, stride, at, end_key, width, q.dtype, WIDTH)
        none = tl.zeros([q.shape[0], KEYS], acc)
        s = product(q, tl.trans(k), none, storage, PRECISION) * scale
        seen = (at[None, :] >= start[:, None]) & (at[None, :] < end[:, None])
        p = tl.where(seen, tl.exp(s - top[:, None]) * inverse[:, None], 0.0)
        e = product(d_out, tl.trans(v), none, storage, PRECISION)
        d_q = product(p * (e - d[:, None]), k, d_q, storage, PRECISION)
    return d_q


@triton.jit
def _key_gradients(
    keys, stride, at, end_key, query, s_query_row, gradient, s_gradient_row, statistics, s_statistic, cotangent,
    first_query, end_query, offsets, boundaries, n_prefix, is_leading, width, scale,
    LAST: tl.constexpr, IS_PREFIX: tl.constexpr, storage: tl.constexpr, OPERAND: tl.constexpr,
    PRECISION: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Gradients of a tile of keys and of its values, over some queries."""
    acc: tl.constexpr = statistics.dtype.element_ty
    k = load_rows(keys, stride, at, end_key, width, OPERAND, WIDTH)
    v = load_rows(keys + tl.num_programs(1) * width, stride, at, end_key, width, OPERAND, WIDTH)
    d_k = tl.zeros([at.shape[0], WIDTH], acc)
    d_v = tl.zeros([at.shape[0], WIDTH], acc)
    for first in range(first_query, end_query, ROWS):
        queries = first + tl.arange(0, ROWS)
        inside = queries < end_query
        q = load_rows(query, s_query_row, queries, end_query, width, OPERAND, WIDTH)
        d_out = load_rows(gradient, s_gradient_row, queries, end_query, width, OPERAND, WIDTH)
        top = tl.load(statistics + queries, mask=inside, other=0.0).to(acc)
        inverse = tl.load(statistics + s_statistic + queries, mask=inside, other=0.0).to(acc)
        d = tl.load(statistics + (N_STATISTICS + cotangent) * s_statistic + queries, mask=inside, other=0.0).to(acc)
        none = tl.zeros([at.shape[0], ROWS], acc)
        s = product(k, tl.trans(q), none, storage, PRECISION) * scale
        end_prefix, start, end = seen_keys(queries, end_query, offsets, boundaries, n_prefix, is_leading, LAST)
        if IS_PREFIX:
            seen = at[:, None] < end_prefix[None, :]
        else:
            seen = (at[:, None] >= start[None, :]) & (at[:, None] < end[None, :])
        p = tl.where(seen, tl.exp(s - top[None, :]) * inverse[None, :], 0.0)
        d_v = product(p, d_out, d_v, storage, PRECISION)
        e = product(v, tl.trans(d_out), none, storage, PRECISION)
        d_k = product(p * (e - d[None, :]), q, d_k, storage, PRECISION)
    return d_k * scale, d_v


@triton.jit(do_not_specialize=["n_queries", "n_segments", "per_program", "n_prefix", "n_leading", "n_cotangents"])
def attention_backward(
    gradient, query, key_value, prefix, offsets, d_query, d_key_value, partials, statistics,
    s_gradient, s_gradient_group, s_gradient_row, s_query_group, s_query_row, s_key_group, s_key_row,
    s_prefix_group, s_prefix_row, s_d_query, s_d_query_group, s_d_query_row, s_d_key, s_d_key_group, s_d_key_row,
    n_queries, n_segments, per_program, n_prefix, n_leading, n_cotangents, width, scale: tl.float64,
    LAST: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
    KEY_ROWS: tl.constexpr, WIDTH: tl.constexpr, BOUNDARIES: tl.constexpr,
):  # fmt: skip
    """Gradients of a program's queries and rows, and its part of those of the prefix, (program, K, G, P, 2·d)."""
    storage: tl.constexpr = query.dtype.element_ty
    acc: tl.constexpr = statistics.dtype.element_ty
    n_heads, n_groups = tl.num_programs(1), tl.num_programs(2)
    d_model = n_heads * width
    column, group = tl.program_id(1) * width, tl.program_id(2).to(tl.int64)
    boundaries, first_row, end_row, first_query, end_query, is_leading = program_segments(
        offsets, n_segments, per_program, n_leading, LAST, BOUNDARIES
    )
    n_before = tl.full([], n_leading, tl.int64)  # rows before those of the segments
    gradient += group * s_gradient_group + column
    query += group * s_query_group + column
    key_value += group * s_key_group + n_before * s_key_row + column
    prefix += group * s_prefix_group + column
    d_query += group * s_d_query_group + column
    d_key_value += group * s_d_key_group + n_before * s_d_key_row + column
    statistics += (group * n_heads + tl.program_id(1)) * n_queries
    s_statistic = tl.full([], n_queries, tl.int64) * n_heads * n_groups
    if not LAST:
        n_before = tl.where(is_leading, 0, n_before)
        gradient += n_before * s_gradient_row
        query += n_before * s_query_row
        d_query += n_before * s_d_query_row
        statistics += n_before
    b_scale = tl.full([], scale, acc)

    for first in range(first_query, end_query, ROWS):
        queries = first + tl.arange(0, ROWS)
        inside = queries < end_query
        end_prefix, start, end = seen_keys(queries, end_query, offsets, boundaries, n_prefix, is_leading, LAST)
        q = load_rows(query, s_query_row, queries, end_query, width, OPERAND, WIDTH)
        top, inverse, out = attend_all(
            q, key_value, prefix, s_key_row, s_prefix_row, end_prefix, start, end, width, b_scale, acc,
            storage, PRECISION, KEYS, WIDTH,
        )  # fmt: skip
        tl.store(statistics + queries, top, mask=inside)
        tl.store(statistics + s_statistic + queries, inverse, mask=inside)
        for cotangent in range(0, n_cotangents):
            number = tl.full([], cotangent, tl.int64)
            b_gradient = gradient + number * s_gradient
            d = tl.sum(load_rows(b_gradient, s_gradient_row, queries, end_query, width, acc, WIDTH) * out, axis=1)
            tl.store(statistics + (N_STATISTICS + number) * s_statistic + queries, d, mask=inside)

    tl.debug_barrier()  # threads read statistics that others have written
    for cotangent in range(0, n_cotangents):
        number = tl.full([], cotangent, tl.int64)
        b_gradient = gradient + number * s_gradient
        b_d_query = d_query + number * s_d_query
        for first in range(first_query, end_query, ROWS):
            queries = first + tl.arange(0, ROWS)
            inside = queries < end_query
            end_prefix, start, end = seen_keys(queries, end_query, offsets, boundaries, n_prefix, is_leading, LAST)
            q = load_rows(query, s_query_row, queries, end_query, width, OPERAND, WIDTH)
            d_out = load_rows(b_gradient, s_gradient_row, queries, end_query, width, OPERAND, WIDTH)
            top = tl.load(statistics + queries, mask=inside, other=0.0).to(acc)
            inverse = tl.load(statistics + s_statistic + queries, mask=inside, other=0.0).to(acc)
            d = tl.load(statistics + (N_STATISTICS + number) * s_statistic + queries, mask=inside, other=0.0).to(acc)
            d_q = _add_query_gradient(
                tl.zeros([ROWS, WIDTH], acc), q, d_out, d, top, inverse, prefix, s_prefix_row,
                tl.zeros_like(end_prefix), end_prefix, width, b_scale, storage, PRECISION, KEYS, WIDTH,
            )  # fmt: skip
            d_q = _add_query_gradient(
                d_q, q, d_out, d, top, inverse, key_value, s_key_row, start, end, width, b_scale,
                storage, PRECISION, KEYS, WIDTH,
            )  # fmt: skip
            store_rows(b_d_query, s_d_query_row, queries, end_query, width, d_q * b_scale, WIDTH)

        b_d_key = d_key_value + number * s_d_key
        for first in range(first_row, end_row, KEYS):
            at = first + tl.arange(0, KEYS)
            if LAST:
                from_query, to_query = first_query, end_query
            else:  # no row before the first key sees it, none beyond the segment of the last key sees that
                from_query = first
                last = tl.minimum(first + KEYS, end_row) - 1
                to_query = tl.min(tl.where(boundaries > last, boundaries, end_row), axis=0)
            d_k, d_v = _key_gradients(
                key_value, s_key_row, at, end_row, query, s_query_row, b_gradient, s_gradient_row,
                statistics, s_statistic, number, from_query, to_query, offsets, boundaries, n_prefix, is_leading,
                width, b_scale, LAST, False, storage, OPERAND, PRECISION, KEY_ROWS, WIDTH,
            )  # fmt: skip
            store_rows(b_d_key, s_d_key_row, at, end_row, width, d_k, WIDTH)
            store_rows(b_d_key + d_model, s_d_key_row, at, end_row, width, d_v, WIDTH)
        part = (tl.program_id(0).to(tl.int64) * n_cotangents + number) * n_groups + group
        b_partial = partials + part * n_prefix * 2 * d_model + column
        for first in range(0, n_prefix, KEYS):
            at = first + tl.arange(0, KEYS)
            d_k, d_v = _key_gradients(
                prefix, s_prefix_row, at, n_prefix, query, s_query_row, b_gradient, s_gradient_row,
                statistics, s_statistic, number, first_query, end_query, offsets, boundaries, n_prefix, is_leading,
                width, b_scale, LAST, True, storage, OPERAND, PRECISION, KEY_ROWS, WIDTH,
            )  # fmt: skip
            store_rows(b_partial, 2 * d_model, at, n_prefix, width, d_k, WIDTH)
            store_rows(b_partial + d_model, 2 * d_model, at, n_prefix, width, d_v, WIDTH)


@triton.jit(do_not_specialize=["n_partials", "n_groups"])
def add_partials(
    partials, d_prefix, s_d_prefix, s_d_prefix_group, s_d_prefix_row, n_partials, n_groups, n_columns,
    PARTIALS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Some columns of one row of the gradients of the prefix, (K, G, P, 2·d), from all partial sums of it."""
    acc: tl.constexpr = partials.dtype.element_ty
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    row, cotangent, group = tl.program_id(1), tl.program_id(2) // n_groups, tl.program_id(2) % n_groups
    n_rows = tl.num_programs(2).to(tl.int64) * tl.num_programs(1)
    partials += (tl.program_id(2).to(tl.int64) * tl.num_programs(1) + row) * n_columns
    b_sum = tl.zeros([PARTIALS, COLUMNS], acc)
    for first in range(0, n_partials, PARTIALS):
        at = first + tl.arange(0, PARTIALS)
        inside = (at < n_partials)[:, None] & (columns < n_columns)[None, :]
        b_sum += tl.load(partials + at[:, None] * n_rows * n_columns + columns[None, :], mask=inside, other=0.0).to(acc)
    d_prefix += cotangent.to(tl.int64) * s_d_prefix + group.to(tl.int64) * s_d_prefix_group
    d_prefix += row.to(tl.int64) * s_d_prefix_row
    tl.store(d_prefix + columns, tl.sum(b_sum, axis=0).to(d_prefix.dtype.element_ty), mask=columns < n_columns)


def shared_prefix_attention_backward_out(
    gradient: Tensor,
    query: Tensor,
    key_value: Tensor,
    prefix: Tensor | None,
    leading: int,
    offsets: Tensor,
    heads: int,
    scale: float,
    last: bool,
    *,
    d_query: Tensor,
    d_key_value: Tensor,
    d_prefix: Tensor | None,
) -> None:
    """The operator `shared_prefix_attention_backward_out` on Triton: two launches, and no value read back."""
    n_cotangents, n_groups, n_queries, d_model = gradient.shape
    if not n_cotangents * n_groups:
        return
    programs = Programs.of(offsets, key_value.shape[1] - leading, leading, last)
    if prefix is None or d_prefix is None:
        shared, d_shared, n_prefix = key_value, d_key_value, leading
    else:
        shared, d_shared, n_prefix = prefix, d_prefix, prefix.shape[1]
    acc = torch.promote_types(query.dtype, torch.float32)
    partials = query.new_empty(programs.n, n_cotangents, n_groups, n_prefix, 2 * d_model, dtype=acc)
    statistics = query.new_empty(N_STATISTICS.value + n_cotangents, n_groups, heads, n_queries, dtype=acc)
    with on_device(query):
        if programs.n:
            attention_backward[(programs.n, heads, n_groups)](
                gradient, query, key_value, shared, offsets.contiguous(), d_query, d_key_value, partials, statistics,
                *gradient.stride()[:3], *query.stride()[:2], *key_value.stride()[:2], *shared.stride()[:2],
                *d_query.stride()[:3], *d_key_value.stride()[:3],
                n_queries, programs.n_segments, programs.per_program, n_prefix, leading, n_cotangents,
                d_model // heads, scale, **tiles(query, heads, last),
            )  # fmt: skip
        if n_prefix:
            add_partials[(triton.cdiv(2 * d_model, COLUMNS_BLOCK), n_prefix, n_cotangents * n_groups)](
                partials, d_shared, *d_shared.stride()[:3], programs.n, n_groups, 2 * d_model,
                PARTIALS=PARTIALS_BLOCK, COLUMNS=COLUMNS_BLOCK, num_warps=4,
            )  # fmt: skip


OPERATORS = (shared_prefix_attention_backward_out,)
