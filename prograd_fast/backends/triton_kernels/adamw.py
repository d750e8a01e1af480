"""Projection and AdamW step over lists of tensors."""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from prograd_fast.backends.triton_kernels.launch import contiguous, copy_back, learning_rate, on_device
from prograd_fast.backends.triton_kernels.projection import (
    advance,
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

UNITS_BLOCK, UNITS_WARPS = 4096, 16  # one program alone must keep enough bytes in flight: 5 x 16 KB here
CHUNKS_BLOCK, CHUNKS_WARPS = 1024, 4

# where the lists are in the table; the steps come last
PARAM, EXP_AVG, EXP_AVG_SQ, MAX_EXP_AVG_SQ = tl.constexpr(2), tl.constexpr(3), tl.constexpr(4), tl.constexpr(5)


@triton.jit
def adamw_range(
    table, n_columns, tensor, row, start, end, elements, alpha, beta, scale, step,
    lr_tensor, lr, beta1, beta2, log2_beta1, log2_beta2, eps, weight_decay, sign,
    P: tl.constexpr, A: tl.constexpr, B: tl.constexpr, M: tl.constexpr, AMSGRAD: tl.constexpr,
    VECTOR: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Elements start ... end - 1 of a row: combine the gradients, update the moments, step. `step` counts from 1."""
    acc: tl.constexpr = alpha.dtype
    offset = row * elements
    a_start = address(table, n_columns, tensor, 0, A, VECTOR) + offset
    b_start = address(table, n_columns, tensor, 1, B, VECTOR) + offset
    p_start = address(table, n_columns, tensor, PARAM, P, VECTOR) + offset
    m_start = address(table, n_columns, tensor, EXP_AVG, M, VECTOR) + offset
    v_start = address(table, n_columns, tensor, EXP_AVG_SQ, M, VECTOR) + offset

    # scalars in float64: 1 - 0.999^t has no digits to spare in float32
    rate = tl.full([], lr, tl.float64)
    if lr_tensor is not None:
        rate = tl.load(lr_tensor).to(tl.float64)
    step_size = (rate / (1.0 - tl.exp2(step * log2_beta1))).to(acc)
    correction2_root = tl.sqrt(1.0 - tl.exp2(step * log2_beta2)).to(acc)
    decay = (rate * weight_decay).to(acc)
    sign = tl.full([], sign, acc)
    keep1, take1 = tl.full([], beta1, acc), tl.full([], 1.0 - beta1, acc)
    keep2, take2 = tl.full([], beta2, acc), tl.full([], 1.0 - beta2, acc)
    eps = tl.full([], eps, acc)

    for o in range(start, end, BLOCK):
        o_block = o + tl.arange(0, BLOCK)
        inside = o_block < elements
        a = tl.load(a_start + o_block, mask=inside, other=0.0).to(acc) / scale
        b = tl.load(b_start + o_block, mask=inside, other=0.0).to(acc)
        p = tl.load(p_start + o_block, mask=inside, other=0.0).to(acc)
        m = tl.load(m_start + o_block, mask=inside, other=0.0).to(acc)
        v = tl.load(v_start + o_block, mask=inside, other=0.0).to(acc)
        g = sign * combine(a, b, alpha, beta)
        p -= decay * p
        m = keep1 * m + take1 * g
        v = keep2 * v + take2 * g * g
        tl.store(m_start + o_block, m.to(M), mask=inside)
        tl.store(v_start + o_block, v.to(M), mask=inside)
        if AMSGRAD:
            x_start = address(table, n_columns, tensor, MAX_EXP_AVG_SQ, M, VECTOR) + offset
            v = tl.maximum(v, tl.load(x_start + o_block, mask=inside, other=0.0).to(acc))
            tl.store(x_start + o_block, v.to(M), mask=inside)
        p -= step_size * m / (tl.sqrt(v) / correction2_root + eps)
        tl.store(p_start + o_block, p.to(P), mask=inside)


@triton.jit(do_not_specialize=["n_tensors"])
def adamw_units(
    table, n_columns, n_tensors, entries, coefficients, lr_tensor, grad_scale, found_inf,
    lr: tl.float64, beta1: tl.float64, beta2: tl.float64, log2_beta1: tl.float64, log2_beta2: tl.float64,
    eps: tl.float64, weight_decay: tl.float64, lambda_: tl.float64, tiny: tl.float64, sign: tl.float64,
    P: tl.constexpr, A: tl.constexpr, B: tl.constexpr, M: tl.constexpr, STEP: tl.constexpr, STEP_AT: tl.constexpr,
    AMSGRAD: tl.constexpr, VECTOR: tl.constexpr, IS_GLOBAL: tl.constexpr, BLOCK: tl.constexpr,
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
            step = tl.load(address(table, n_columns, tensor, STEP_AT, STEP, 1)).to(tl.float64) + 1.0
            adamw_range(
                table, n_columns, tensor, row, 0, elements * alive, elements, alpha, beta, scale, step,
                lr_tensor, lr, beta1, beta2, log2_beta1, log2_beta2, eps, weight_decay, sign,
                P, A, B, M, AMSGRAD, VECTOR, BLOCK,
            )  # fmt: skip
    tl.debug_barrier()  # a thread that is ahead must not count the step that another has yet to read
    for tensor in range(first, last):
        advance(table, n_columns, tensor, alive, STEP, STEP_AT)


@triton.jit(do_not_specialize=["first_chunk", "chunk_vectors", "n_chunks"])
def adamw_chunks(
    table, n_columns, owner, first_chunk, chunk_vectors, n_chunks, partials, entries, coefficients,
    lr_tensor, grad_scale, found_inf,
    lr: tl.float64, beta1: tl.float64, beta2: tl.float64, log2_beta1: tl.float64, log2_beta2: tl.float64,
    eps: tl.float64, weight_decay: tl.float64, lambda_: tl.float64, tiny: tl.float64, sign: tl.float64,
    P: tl.constexpr, A: tl.constexpr, B: tl.constexpr, M: tl.constexpr, STEP: tl.constexpr, STEP_AT: tl.constexpr,
    AMSGRAD: tl.constexpr, VECTOR: tl.constexpr, IS_GLOBAL: tl.constexpr, BLOCK: tl.constexpr,
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
    step = tl.load(address(table, n_columns, tensor, STEP_AT, STEP, 1)).to(tl.float64)  # counted already
    adamw_range(
        table, n_columns, tensor, row, start, end * live(found_inf), elements, alpha, beta, scale_of(grad_scale, acc),
        step, lr_tensor, lr, beta1, beta2, log2_beta1, log2_beta2, eps, weight_decay, sign,
        P, A, B, M, AMSGRAD, VECTOR, BLOCK,
    )  # fmt: skip


@triton.jit
def count_steps(table, n_columns, found_inf, STEP: tl.constexpr, STEP_AT: tl.constexpr):
    """Advance the step counter of each tensor, where no Gram launch does it."""
    advance(table, n_columns, tl.program_id(0), live(found_inf), STEP, STEP_AT)


def project_adamw_(
    params: Sequence[Tensor],
    task: Sequence[Tensor],
    general: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    max_exp_avg_sqs: Sequence[Tensor],
    steps: Sequence[Tensor],
    entries: Tensor,
    coefficients: Tensor | None,
    lr_tensor: Tensor | None,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    lambda_: float,
    scope: int,
    amsgrad: bool,
    maximize: bool,
    grad_scale: Tensor | None,
    found_inf: Tensor | None,
) -> None:
    """The operator `project_adamw_` on Triton: one launch for small tensors, else two."""
    if not params:
        return
    mutated = [params, exp_avgs, exp_avg_sqs] + ([max_exp_avg_sqs] if amsgrad else [])
    dense = [contiguous(tensors) for tensors in mutated]
    lists = [contiguous(task), contiguous(general), *dense]
    work = plan(lists, scope, steps)
    step_at = len(lists)
    is_global = scope == SCOPE_GLOBAL
    lr_tensor, lr = learning_rate(lr_tensor, lr, params[0])
    given_entries, entries = entries, entries.contiguous()
    if coefficients is not None:
        coefficients = coefficients.contiguous()
    scalars = (
        lr, beta1, beta2, _log2(beta1), _log2(beta2), eps, weight_decay, lambda_,
        torch.finfo(entries.dtype).tiny, -1.0 if maximize else 1.0,
    )  # fmt: skip
    with on_device(params[0]):
        partials = None
        if not work.one_launch:
            if coefficients is None:
                partials = entries.new_empty(work.n_chunks, 3)
                launch_gram_chunks(work, grad_scale, found_inf, partials, step_at)
            else:
                for group in work.groups:
                    count_steps[(group.n_tensors,)](
                        group.table, group.table.shape[1], found_inf, STEP=group.dtype(step_at), STEP_AT=step_at
                    )
        for group in work.groups:
            kinds = {
                "P": group.dtype(2), "A": group.dtype(0), "B": group.dtype(1), "M": group.dtype(3),
                "STEP": group.dtype(step_at), "STEP_AT": step_at, "AMSGRAD": amsgrad, "VECTOR": group.vector,
                "IS_GLOBAL": is_global,
            }  # fmt: skip
            if work.one_launch:
                adamw_units[(1 if is_global else group.n_tensors,)](
                    group.table, group.table.shape[1], group.n_tensors, entries, coefficients,
                    lr_tensor, grad_scale, found_inf, *scalars, **kinds, BLOCK=UNITS_BLOCK, num_warps=UNITS_WARPS,
                )  # fmt: skip
            elif group.n_chunks:
                adamw_chunks[(group.n_chunks,)](
                    *chunk_arguments(work, group), work.n_chunks, partials, entries, coefficients,
                    lr_tensor, grad_scale, found_inf, *scalars, **kinds, BLOCK=CHUNKS_BLOCK, num_warps=CHUNKS_WARPS,
                )  # fmt: skip
    copy_back([given_entries], [entries])
    for tensors, changed in zip(mutated, dense, strict=True):
        copy_back(tensors, changed)


def _log2(beta: float) -> float:
    return math.log2(beta) if beta > 0 else -math.inf
