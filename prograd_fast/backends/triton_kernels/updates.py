"""Projection and optimizer step over lists of tensors: AdamW and SGD.

Small units take one launch (`adamw_units`, `sgd_units`), and AdamW one before it that counts the steps, where the units
are rows; larger ones take two: `gram_chunks`, then `adamw_chunks` or `sgd_chunks`. `adamw_range` and `sgd_range` are
the formulas of the two optimizers; they share all the rest.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

import math
from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from prograd_fast.backends.triton_kernels.launch import contiguous, copy_back, learning_rate, on_device
from prograd_fast.backends.triton_kernels.projection import (
    advance,
    chunk_factors,
    combine,
    elements_of,
    launch_gram_chunks,
    live,
    load_gradients,
    unit_factors,
)
from prograd_fast.backends.triton_kernels.tensor_lists import (
    ROWS,
    SCOPE_GLOBAL,
    SCOPE_ROW,
    VECTORS,
    WIDE,
    address,
    chunk_of,
    field,
    plan_launches,
    units_of,
)
from prograd_fast.ops.updates import AdamWCall, SGDCall

CHUNKS_BLOCK, CHUNKS_WARPS = 1024, 4

# where the lists are in the table, after the two gradients; the steps of AdamW come last
PARAM, FIRST_STATE, SECOND_STATE, THIRD_STATE = tl.constexpr(2), tl.constexpr(3), tl.constexpr(4), tl.constexpr(5)


@triton.jit
def _rate(lr_tensor, lr):
    """The learning rate in float64."""
    rate = tl.full([], lr, tl.float64)
    if lr_tensor is not None:
        rate = tl.load(lr_tensor).to(tl.float64)
    return rate


# ---- AdamW


@triton.jit
def adamw_range(
    table, n_columns, tensor, rows, start, end, elements, alpha, beta, step,
    lr_tensor, lr, weight_decay, sign, beta1, beta2, log2_beta1, log2_beta2, eps,
    P: tl.constexpr, A: tl.constexpr, B: tl.constexpr, M: tl.constexpr, AMSGRAD: tl.constexpr,
    VECTOR: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Elements start ... end - 1 of rows: combine the gradients, update the moments, step. `step` counts from 1."""
    acc: tl.constexpr = alpha.dtype
    offset, n_rows = rows * elements, field(table, n_columns, tensor, ROWS)
    a_start = address(table, n_columns, tensor, 0, A, VECTOR) + offset
    b_start = address(table, n_columns, tensor, 1, B, VECTOR) + offset
    p_start = address(table, n_columns, tensor, PARAM, P, VECTOR) + offset
    m_start = address(table, n_columns, tensor, FIRST_STATE, M, VECTOR) + offset
    v_start = address(table, n_columns, tensor, SECOND_STATE, M, VECTOR) + offset

    # scalars in float64: 1 - 0.999^t has no digits to spare in float32
    rate = _rate(lr_tensor, lr)
    step_size = (rate / (1.0 - tl.exp2(step * log2_beta1))).to(acc)
    correction2_root = tl.sqrt(1.0 - tl.exp2(step * log2_beta2)).to(acc)
    decay = (rate * weight_decay).to(acc)
    sign = tl.full([], sign, acc)
    keep1, take1 = tl.full([], beta1, acc), tl.full([], 1.0 - beta1, acc)
    keep2, take2 = tl.full([], beta2, acc), tl.full([], 1.0 - beta2, acc)
    eps = tl.full([], eps, acc)

    for o in range(start, end, BLOCK):
        o_block, inside = elements_of(rows, n_rows, o, elements, BLOCK)
        a, b = load_gradients(a_start, b_start, o_block, inside, acc)
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
            x_start = address(table, n_columns, tensor, THIRD_STATE, M, VECTOR) + offset
            v = tl.maximum(v, tl.load(x_start + o_block, mask=inside, other=0.0).to(acc))
            tl.store(x_start + o_block, v.to(M), mask=inside)
        p -= step_size * m / (tl.sqrt(v) / correction2_root + eps)
        tl.store(p_start + o_block, p.to(P), mask=inside)


@triton.jit(do_not_specialize=["first_program", "n_tensors"])
def adamw_units(
    table, n_columns, owner, first_program, n_tensors, entries, coefficients, lr_tensor, found_inf,
    lr: tl.float64, weight_decay: tl.float64, lambda_: tl.float64, noise_floor: tl.float64, sign: tl.float64,
    beta1: tl.float64, beta2: tl.float64, log2_beta1: tl.float64, log2_beta2: tl.float64, eps: tl.float64,
    P: tl.constexpr, A: tl.constexpr, B: tl.constexpr, M: tl.constexpr, STEP: tl.constexpr, STEP_AT: tl.constexpr,
    AMSGRAD: tl.constexpr, VECTOR: tl.constexpr, IS_GLOBAL: tl.constexpr, COUNTED: tl.constexpr,
    UNITS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The whole step: each program has one tensor, some rows (whose steps are COUNTED), or (global) everything."""
    first, last, rows = units_of(table, n_columns, owner, first_program, n_tensors, UNITS, IS_GLOBAL)
    alive = live(found_inf)
    alpha, beta = unit_factors(
        table, n_columns, first, last, rows, entries, coefficients, lambda_, noise_floor, A, B, VECTOR, BLOCK
    )
    for tensor in range(first, last):
        elements = field(table, n_columns, tensor, VECTORS) * VECTOR
        step = tl.load(address(table, n_columns, tensor, STEP_AT, STEP, 1)).to(tl.float64)
        if not COUNTED:
            step += 1.0
        adamw_range(
            table, n_columns, tensor, rows, 0, elements * alive, elements, alpha, beta, step,
            lr_tensor, lr, weight_decay, sign, beta1, beta2, log2_beta1, log2_beta2, eps,
            P, A, B, M, AMSGRAD, VECTOR, BLOCK,
        )  # fmt: skip
    if not COUNTED:
        tl.debug_barrier()  # a thread that is ahead must not count the step that another has yet to read
        for tensor in range(first, last):
            advance(table, n_columns, tensor, alive, STEP, STEP_AT)


@triton.jit(do_not_specialize=["first_program", "chunk_vectors", "n_programs"])
def adamw_chunks(
    table, n_columns, owner, first_program, chunk_vectors, n_programs, partials, entries, coefficients,
    lr_tensor, found_inf,
    lr: tl.float64, weight_decay: tl.float64, lambda_: tl.float64, noise_floor: tl.float64, sign: tl.float64,
    beta1: tl.float64, beta2: tl.float64, log2_beta1: tl.float64, log2_beta2: tl.float64, eps: tl.float64,
    P: tl.constexpr, A: tl.constexpr, B: tl.constexpr, M: tl.constexpr, STEP: tl.constexpr, STEP_AT: tl.constexpr,
    AMSGRAD: tl.constexpr, VECTOR: tl.constexpr, IS_GLOBAL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The second of two launches: each program has one chunk."""
    chunk = chunk_vectors * WIDE
    tensor, row, elements, start, end, number = chunk_of(table, n_columns, owner, first_program, chunk, VECTOR)
    alpha, beta = chunk_factors(
        table, n_columns, tensor, row, elements, start, number, chunk, n_programs, partials, entries, coefficients,
        lambda_, noise_floor, IS_GLOBAL,
    )  # fmt: skip
    step = tl.load(address(table, n_columns, tensor, STEP_AT, STEP, 1)).to(tl.float64)  # counted already
    adamw_range(
        table, n_columns, tensor, row, start, end * live(found_inf), elements, alpha, beta, step,
        lr_tensor, lr, weight_decay, sign, beta1, beta2, log2_beta1, log2_beta2, eps,
        P, A, B, M, AMSGRAD, VECTOR, BLOCK,
    )  # fmt: skip


@triton.jit
def count_steps(table, n_columns, found_inf, STEP: tl.constexpr, STEP_AT: tl.constexpr):
    """Advance the step counter of each tensor, where no Gram launch does it."""
    advance(table, n_columns, tl.program_id(0), live(found_inf), STEP, STEP_AT)


# ---- SGD


@triton.jit
def sgd_range(
    table, n_columns, tensor, rows, start, end, elements, alpha, beta,
    lr_tensor, lr, weight_decay, sign, momentum, dampening, nesterov, first_step,
    P: tl.constexpr, A: tl.constexpr, B: tl.constexpr, M: tl.constexpr, VECTOR: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Elements start ... end - 1 of rows: combine the gradients, update the momentum, step. M is None without one."""
    acc: tl.constexpr = alpha.dtype
    offset, n_rows = rows * elements, field(table, n_columns, tensor, ROWS)
    a_start = address(table, n_columns, tensor, 0, A, VECTOR) + offset
    b_start = address(table, n_columns, tensor, 1, B, VECTOR) + offset
    p_start = address(table, n_columns, tensor, PARAM, P, VECTOR) + offset

    rate = _rate(lr_tensor, lr).to(acc)
    decay, sign = tl.full([], weight_decay, acc), tl.full([], sign, acc)
    keep, take = tl.full([], momentum, acc), tl.full([], 1.0 - dampening, acc)

    for o in range(start, end, BLOCK):
        o_block, inside = elements_of(rows, n_rows, o, elements, BLOCK)
        a, b = load_gradients(a_start, b_start, o_block, inside, acc)
        p = tl.load(p_start + o_block, mask=inside, other=0.0).to(acc)
        g = sign * combine(a, b, alpha, beta) + decay * p
        if M is not None:
            m_start = address(table, n_columns, tensor, FIRST_STATE, M, VECTOR) + offset
            m = tl.load(m_start + o_block, mask=inside, other=0.0).to(acc)
            m = tl.where(first_step != 0, g, keep * m + take * g)
            tl.store(m_start + o_block, m.to(M), mask=inside)
            g = tl.where(nesterov != 0, g + keep * m, m)
        tl.store(p_start + o_block, (p - rate * g).to(P), mask=inside)


@triton.jit(do_not_specialize=["first_program", "n_tensors", "nesterov", "first_step"])
def sgd_units(
    table, n_columns, owner, first_program, n_tensors, entries, coefficients, lr_tensor, found_inf,
    lr: tl.float64, weight_decay: tl.float64, lambda_: tl.float64, noise_floor: tl.float64, sign: tl.float64,
    momentum: tl.float64, dampening: tl.float64, nesterov, first_step,
    P: tl.constexpr, A: tl.constexpr, B: tl.constexpr, M: tl.constexpr, VECTOR: tl.constexpr,
    IS_GLOBAL: tl.constexpr, UNITS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The whole step in one launch: each program has one tensor, some rows, or (global) everything."""
    first, last, rows = units_of(table, n_columns, owner, first_program, n_tensors, UNITS, IS_GLOBAL)
    alive = live(found_inf)
    alpha, beta = unit_factors(
        table, n_columns, first, last, rows, entries, coefficients, lambda_, noise_floor, A, B, VECTOR, BLOCK
    )
    for tensor in range(first, last):
        elements = field(table, n_columns, tensor, VECTORS) * VECTOR
        sgd_range(
            table, n_columns, tensor, rows, 0, elements * alive, elements, alpha, beta,
            lr_tensor, lr, weight_decay, sign, momentum, dampening, nesterov, first_step,
            P, A, B, M, VECTOR, BLOCK,
        )  # fmt: skip


@triton.jit(do_not_specialize=["first_program", "chunk_vectors", "n_programs", "nesterov", "first_step"])
def sgd_chunks(
    table, n_columns, owner, first_program, chunk_vectors, n_programs, partials, entries, coefficients,
    lr_tensor, found_inf,
    lr: tl.float64, weight_decay: tl.float64, lambda_: tl.float64, noise_floor: tl.float64, sign: tl.float64,
    momentum: tl.float64, dampening: tl.float64, nesterov, first_step,
    P: tl.constexpr, A: tl.constexpr, B: tl.constexpr, M: tl.constexpr, VECTOR: tl.constexpr,
    IS_GLOBAL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The second of two launches: each program has one chunk."""
    chunk = chunk_vectors * WIDE
    tensor, row, elements, start, end, number = chunk_of(table, n_columns, owner, first_program, chunk, VECTOR)
    alpha, beta = chunk_factors(
        table, n_columns, tensor, row, elements, start, number, chunk, n_programs, partials, entries, coefficients,
        lambda_, noise_floor, IS_GLOBAL,
    )  # fmt: skip
    sgd_range(
        table, n_columns, tensor, row, start, end * live(found_inf), elements, alpha, beta,
        lr_tensor, lr, weight_decay, sign, momentum, dampening, nesterov, first_step, P, A, B, M, VECTOR, BLOCK,
    )  # fmt: skip


# ---- launches


def _launch(
    units_kernel, chunks_kernel, call: AdamWCall | SGDCall, params_and_states: Sequence[Sequence[Tensor]],
    steps: Sequence[Tensor], *scalars: float, **constants: bool,
) -> None:  # fmt: skip
    """One launch of `units_kernel` for small tensors, else one for the Gram entries and one of `chunks_kernel`.

    `scalars` and `constants` are those that only this optimizer's kernels take.
    """
    params = params_and_states[0]
    if not params:
        return
    dense = [contiguous(tensors) for tensors in params_and_states]
    lists = [
        contiguous(call.task),
        contiguous(call.general),
        *dense,
    ]  # held until the launch: a plan has addresses only
    plan = plan_launches(lists, call.scope, steps)
    is_global = call.scope == SCOPE_GLOBAL
    step_at = len(lists) if steps else None
    lr_tensor, lr = learning_rate(call.lr_tensor, call.lr, params[0])
    (entries,) = contiguous([call.entries])
    coefficients = None if call.coefficients is None else call.coefficients.contiguous()
    inputs = (
        entries, coefficients, lr_tensor, call.found_inf, lr, call.weight_decay, call.lambda_, call.noise_floor,
        -1.0 if call.maximize else 1.0, *scalars,
    )  # fmt: skip
    with on_device(params[0]):
        partials, count_first = None, False
        if coefficients is None and not plan.one_launch:
            partials = entries.new_empty(plan.n_programs, 3)
            launch_gram_chunks(plan, call.found_inf, partials, step_at)
        elif step_at is not None and (not plan.one_launch or call.scope == SCOPE_ROW):
            count_first = plan.one_launch  # several programs have rows of one tensor
            for group in plan.groups:
                count_steps[(group.n_tensors,)](
                    group.table, group.n_columns, call.found_inf, STEP=group.dtype(step_at), STEP_AT=step_at
                )
        for group in plan.groups:
            if not group.n_programs:
                continue
            kinds = constants | {
                "P": group.dtype(2), "A": group.dtype(0), "B": group.dtype(1),
                "M": group.dtype(3) if len(lists) > 3 else None, "VECTOR": group.vector, "IS_GLOBAL": is_global,
            }  # fmt: skip
            if step_at is not None:
                kinds |= {"STEP": group.dtype(step_at), "STEP_AT": step_at}
            if plan.one_launch:
                if step_at is not None:
                    kinds |= {"COUNTED": count_first}
                units_kernel[(group.n_programs,)](*group.unit_arguments, *inputs, **kinds, **plan.tile)
            else:
                chunks_kernel[(group.n_programs,)](
                    *group.chunk_arguments, plan.n_programs, partials, *inputs,
                    **kinds, BLOCK=CHUNKS_BLOCK, num_warps=CHUNKS_WARPS,
                )  # fmt: skip
    copy_back([call.entries], [entries])
    for tensors, changed in zip(params_and_states, dense, strict=True):
        copy_back(tensors, changed)


def project_adamw_(*args) -> None:
    """The operator `project_adamw_` on Triton: one launch for small units, else two."""
    call = AdamWCall(*args)
    states = [call.exp_avgs, call.exp_avg_sqs] + ([call.max_exp_avg_sqs] if call.amsgrad else [])
    _launch(
        adamw_units, adamw_chunks, call, [call.params, *states], call.steps,
        call.beta1, call.beta2, _log2(call.beta1), _log2(call.beta2), call.eps, AMSGRAD=call.amsgrad,
    )  # fmt: skip


def _log2(beta: float) -> float:
    return math.log2(beta) if beta > 0 else -math.inf


def project_sgd_(*args) -> None:
    """The operator `project_sgd_` on Triton: one launch for small units, else two."""
    call = SGDCall(*args)
    states = [call.momentum_buffers] if call.momentum_buffers else []
    _launch(
        sgd_units, sgd_chunks, call, [call.params, *states], (),
        call.momentum, call.dampening, int(call.nesterov), int(call.first),
    )  # fmt: skip


OPERATORS = (project_adamw_, project_sgd_)
