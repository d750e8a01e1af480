"""Projection and SGD step over lists of tensors."""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from prograd_fast.backends.triton_kernels.launch import contiguous, copy_back, learning_rate, on_device
from prograd_fast.backends.triton_kernels.projection import (
    chunk_arguments,
    combine,
    conflict,
    is_first,
    launch_gram_chunks,
    live,
    load_coefficients,
    scale_of,
    store_entries,
    unit_dots,
    unit_partials,
)
from prograd_fast.backends.triton_kernels.tensors import (
    ROWS,
    SCOPE_GLOBAL,
    UNIT,
    VECTORS,
    WIDE,
    address,
    chunk_of,
    field,
    plan,
)

UNITS_BLOCK, UNITS_WARPS = 4096, 16
CHUNKS_BLOCK, CHUNKS_WARPS = 1024, 4

# where the lists are in the table
PARAM, MOMENTUM = tl.constexpr(2), tl.constexpr(3)


@triton.jit
def sgd_range(
    table, n_columns, tensor, row, start, end, elements, alpha, beta, scale, lr_tensor, lr, momentum, dampening,
    weight_decay, sign, nesterov, first_step,
    P: tl.constexpr, A: tl.constexpr, B: tl.constexpr, M: tl.constexpr, VECTOR: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Elements start ... end - 1 of a row: combine the gradients, update the momentum, step. M is None without one."""
    acc: tl.constexpr = alpha.dtype
    offset = row * elements
    a_start = address(table, n_columns, tensor, 0, A, VECTOR) + offset
    b_start = address(table, n_columns, tensor, 1, B, VECTOR) + offset
    p_start = address(table, n_columns, tensor, PARAM, P, VECTOR) + offset

    rate = tl.full([], lr, tl.float64)
    if lr_tensor is not None:
        rate = tl.load(lr_tensor).to(tl.float64)
    rate = rate.to(acc)
    decay, sign = tl.full([], weight_decay, acc), tl.full([], sign, acc)
    keep, take = tl.full([], momentum, acc), tl.full([], 1.0 - dampening, acc)

    for o in range(start, end, BLOCK):
        o_block = o + tl.arange(0, BLOCK)
        inside = o_block < elements
        a = tl.load(a_start + o_block, mask=inside, other=0.0).to(acc) / scale
        b = tl.load(b_start + o_block, mask=inside, other=0.0).to(acc)
        p = tl.load(p_start + o_block, mask=inside, other=0.0).to(acc)
        g = sign * combine(a, b, alpha, beta) + decay * p
        if M is not None:
            m_start = address(table, n_columns, tensor, MOMENTUM, M, VECTOR) + offset
            m = tl.load(m_start + o_block, mask=inside, other=0.0).to(acc)
            m = tl.where(first_step != 0, g, keep * m + take * g)
            tl.store(m_start + o_block, m.to(M), mask=inside)
            g = tl.where(nesterov != 0, g + keep * m, m)
        tl.store(p_start + o_block, (p - rate * g).to(P), mask=inside)


@triton.jit(do_not_specialize=["n_tensors", "nesterov", "first_step"])
def sgd_units(
    table, n_columns, n_tensors, entries, coefficients, lr_tensor, grad_scale, found_inf,
    lr: tl.float64, momentum: tl.float64, dampening: tl.float64, weight_decay: tl.float64,
    lambda_: tl.float64, tiny: tl.float64, sign: tl.float64, nesterov, first_step,
    P: tl.constexpr, A: tl.constexpr, B: tl.constexpr, M: tl.constexpr, VECTOR: tl.constexpr,
    IS_GLOBAL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The whole step in one launch: each program has one tensor and all its units, or (global) everything."""
    acc: tl.constexpr = entries.dtype.element_ty
    first = tl.program_id(0)
    last = n_tensors if IS_GLOBAL else first + 1
    alive = live(found_inf)
    scale = scale_of(grad_scale, acc)
    for row in range(0, field(table, n_columns, first, ROWS)):
        unit = field(table, n_columns, first, UNIT) + row
        if coefficients is not None:
            alpha, beta = load_coefficients(coefficients, unit)
        else:
            # the second read of the gradients, below, comes from the caches
            aa, ab, bb = unit_dots(table, n_columns, first, last, row, scale, acc, A, B, VECTOR, BLOCK)
            store_entries(entries, unit, aa, ab, bb)
            alpha, beta = conflict(aa, ab, bb, tl.full([], lambda_, acc), tl.full([], tiny, acc))
        for tensor in range(first, last):
            elements = field(table, n_columns, tensor, VECTORS) * VECTOR
            sgd_range(
                table, n_columns, tensor, row, 0, elements * alive, elements, alpha, beta, scale, lr_tensor, lr,
                momentum, dampening, weight_decay, sign, nesterov, first_step, P, A, B, M, VECTOR, BLOCK,
            )  # fmt: skip


@triton.jit(do_not_specialize=["first_chunk", "chunk_vectors", "n_chunks", "nesterov", "first_step"])
def sgd_chunks(
    table, n_columns, owner, first_chunk, chunk_vectors, n_chunks, partials, entries, coefficients,
    lr_tensor, grad_scale, found_inf,
    lr: tl.float64, momentum: tl.float64, dampening: tl.float64, weight_decay: tl.float64,
    lambda_: tl.float64, tiny: tl.float64, sign: tl.float64, nesterov, first_step,
    P: tl.constexpr, A: tl.constexpr, B: tl.constexpr, M: tl.constexpr, VECTOR: tl.constexpr,
    IS_GLOBAL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The second of two launches: chunks by themselves, given the entries of all chunks or a rule's coefficients."""
    acc: tl.constexpr = entries.dtype.element_ty
    chunk = chunk_vectors * WIDE
    tensor, row, elements, start, end, number = chunk_of(table, n_columns, owner, first_chunk, chunk, VECTOR)
    unit = field(table, n_columns, tensor, UNIT) + row
    if coefficients is not None:
        alpha, beta = load_coefficients(coefficients, unit)
    else:
        aa, ab, bb = unit_partials(table, n_columns, partials, tensor, row, elements, chunk, n_chunks, IS_GLOBAL)
        if is_first(number, start, IS_GLOBAL):
            store_entries(entries, unit, aa, ab, bb)
        alpha, beta = conflict(aa, ab, bb, tl.full([], lambda_, acc), tl.full([], tiny, acc))
    sgd_range(
        table, n_columns, tensor, row, start, end * live(found_inf), elements, alpha, beta, scale_of(grad_scale, acc),
        lr_tensor, lr, momentum, dampening, weight_decay, sign, nesterov, first_step, P, A, B, M, VECTOR, BLOCK,
    )  # fmt: skip


def project_sgd_(
    params: Sequence[Tensor],
    task: Sequence[Tensor],
    general: Sequence[Tensor],
    momentum_buffers: Sequence[Tensor],
    entries: Tensor,
    coefficients: Tensor | None,
    lr_tensor: Tensor | None,
    lr: float,
    momentum: float,
    dampening: float,
    weight_decay: float,
    lambda_: float,
    scope: int,
    nesterov: bool,
    maximize: bool,
    first: bool,
    grad_scale: Tensor | None,
    found_inf: Tensor | None,
) -> None:
    """The operator `project_sgd_` on Triton: one launch for small tensors, else two."""
    if not params:
        return
    mutated = [params] + ([momentum_buffers] if momentum_buffers else [])
    dense = [contiguous(tensors) for tensors in mutated]
    lists = [contiguous(task), contiguous(general), *dense]  # held until the launch: a plan has addresses only
    work = plan(lists, scope)
    is_global = scope == SCOPE_GLOBAL
    lr_tensor, lr = learning_rate(lr_tensor, lr, params[0])
    given_entries, entries = entries, entries.contiguous()
    if coefficients is not None:
        coefficients = coefficients.contiguous()
    scalars = (
        lr, momentum, dampening, weight_decay, lambda_, torch.finfo(entries.dtype).tiny,
        -1.0 if maximize else 1.0, int(nesterov), int(first),
    )  # fmt: skip
    with on_device(params[0]):
        partials = None
        if not work.one_launch and coefficients is None:
            partials = entries.new_empty(work.n_chunks, 3)
            launch_gram_chunks(work, grad_scale, found_inf, partials)
        for group in work.groups:
            kinds = {
                "P": group.dtype(2), "A": group.dtype(0), "B": group.dtype(1),
                "M": group.dtype(3) if momentum_buffers else None, "VECTOR": group.vector, "IS_GLOBAL": is_global,
            }  # fmt: skip
            if work.one_launch:
                sgd_units[(1 if is_global else group.n_tensors,)](
                    group.table, group.table.shape[1], group.n_tensors, entries, coefficients,
                    lr_tensor, grad_scale, found_inf, *scalars, **kinds, BLOCK=UNITS_BLOCK, num_warps=UNITS_WARPS,
                )  # fmt: skip
            elif group.n_chunks:
                sgd_chunks[(group.n_chunks,)](
                    *chunk_arguments(work, group), work.n_chunks, partials, entries, coefficients,
                    lr_tensor, grad_scale, found_inf, *scalars, **kinds, BLOCK=CHUNKS_BLOCK, num_warps=CHUNKS_WARPS,
                )  # fmt: skip
    copy_back([given_entries], [entries])
    for tensors, changed in zip(mutated, dense, strict=True):
        copy_back(tensors, changed)
