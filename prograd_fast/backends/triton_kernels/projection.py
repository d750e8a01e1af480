"""Gram entries and projection over lists of tensors."""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from prograd_fast.backends.triton_kernels.launch import contiguous, copy_back, into_contiguous, on_device
from prograd_fast.backends.triton_kernels.tensor_lists import (
    FIRST_CHUNK,
    ROWS,
    SCOPE_GLOBAL,
    UNIT,
    VECTORS,
    WIDE,
    LaunchPlan,
    address,
    chunk_of,
    field,
    plan_launches,
)

UNITS_BLOCK, UNITS_WARPS = 4096, 16  # one program alone must keep enough bytes in flight: 2 x 16 KB here
CHUNKS_BLOCK, CHUNKS_WARPS = 2048, 8
PARTIALS_BLOCK = tl.constexpr(256)  # partial sums added up at once


@triton.jit
def load_gradients(a_start, b_start, o_block, inside, acc: tl.constexpr):
    """A block of the task gradient and of the general gradient."""
    a = tl.load(a_start + o_block, mask=inside, other=0.0).to(acc)
    b = tl.load(b_start + o_block, mask=inside, other=0.0).to(acc)
    return a, b


@triton.jit
def dots(a_start, b_start, start, end, elements, b_aa, b_ab, b_bb, BLOCK: tl.constexpr):
    """Add a·a, a·b and b·b of elements start ... end - 1 to three blocks of sums."""
    for o in range(start, end, BLOCK):
        o_block = o + tl.arange(0, BLOCK)
        inside = o_block < elements
        a, b = load_gradients(a_start, b_start, o_block, inside, b_aa.dtype)
        b_aa += a * a
        b_ab += a * b
        b_bb += b * b
    return b_aa, b_ab, b_bb


@triton.jit
def conflict(aa, ab, bb, lambda_, noise_floor, tiny):
    """ProGrad's factors (alpha, beta) of a and b; (1, 0) where b is absent, vanishing, only rounding or not finite."""
    acc: tl.constexpr = bb.dtype
    lambda_, noise_floor, tiny = tl.full([], lambda_, acc), tl.full([], noise_floor, acc), tl.full([], tiny, acc)
    absent = (bb <= noise_floor * aa * noise_floor) & (aa < float("inf"))
    usable = (bb >= tiny) & (bb < float("inf")) & ~absent
    quotient = tl.minimum(ab, 0.0) / tl.where(usable, bb, 1.0)
    beta = tl.where(usable & (tl.abs(quotient) < float("inf")), -lambda_ * quotient, 0.0)
    return tl.full([], 1.0, acc), beta


@triton.jit
def combine(a, b, alpha, beta):
    """Alpha·a + beta·b, where a non-finite b does not matter for beta = 0."""
    return alpha * a + tl.where(beta == 0.0, 0.0, beta * b)


@triton.jit
def load_coefficients(coefficients, unit):
    """A rule's factors (alpha, beta) for one unit."""
    acc: tl.constexpr = coefficients.dtype.element_ty
    return tl.load(coefficients + unit * 2).to(acc), tl.load(coefficients + unit * 2 + 1).to(acc)


@triton.jit
def live(found_inf):
    """1, or 0 where a GradScaler found an infinity and the step must change nothing."""
    alive = tl.full([], 1, tl.int64)
    if found_inf is not None:
        alive = (tl.load(found_inf).to(tl.float32) <= 0.0).to(tl.int64)
    return alive


@triton.jit
def advance(table, n_columns, tensor, alive, STEP: tl.constexpr, STEP_AT: tl.constexpr):
    """Count one step of a tensor; the caller's other threads must not read the counter afterwards."""
    counter = address(table, n_columns, tensor, STEP_AT, STEP, 1)
    tl.store(counter, (tl.load(counter).to(tl.float64) + alive.to(tl.float64)).to(STEP))


@triton.jit
def is_first(number, start, IS_GLOBAL: tl.constexpr):
    """True for the first chunk of a unit: its program does the work that a unit needs once."""
    return number == 0 if IS_GLOBAL else start == 0


@triton.jit
def store_entries(entries, unit, aa, ab, bb):
    """One row of Gram entries."""
    tl.store(entries + unit * 3, aa)
    tl.store(entries + unit * 3 + 1, ab)
    tl.store(entries + unit * 3 + 2, bb)


@triton.jit
def add_partials(partials, first, count, BLOCK: tl.constexpr):
    """The entries of a unit from those of its chunks, added in a fixed order."""
    acc: tl.constexpr = partials.dtype.element_ty
    b_aa, b_ab, b_bb = tl.zeros([BLOCK], acc), tl.zeros([BLOCK], acc), tl.zeros([BLOCK], acc)
    for start in range(0, count, BLOCK):
        o_block = start + tl.arange(0, BLOCK)
        inside = o_block < count
        o_entries = partials + (first + o_block) * 3
        b_aa += tl.load(o_entries, mask=inside, other=0.0).to(acc)
        b_ab += tl.load(o_entries + 1, mask=inside, other=0.0).to(acc)
        b_bb += tl.load(o_entries + 2, mask=inside, other=0.0).to(acc)
    return tl.sum(b_aa, axis=0), tl.sum(b_ab, axis=0), tl.sum(b_bb, axis=0)


@triton.jit
def unit_dots(
    table, n_columns, first, last, row, acc: tl.constexpr,
    A: tl.constexpr, B: tl.constexpr, VECTOR: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Entries of one unit by one program: a row of tensor `first`, or all of the tensors first ... last - 1."""
    b_aa, b_ab, b_bb = tl.zeros([BLOCK], acc), tl.zeros([BLOCK], acc), tl.zeros([BLOCK], acc)
    for tensor in range(first, last):
        elements = field(table, n_columns, tensor, VECTORS) * VECTOR
        a_start = address(table, n_columns, tensor, 0, A, VECTOR) + row * elements
        b_start = address(table, n_columns, tensor, 1, B, VECTOR) + row * elements
        b_aa, b_ab, b_bb = dots(a_start, b_start, 0, elements, elements, b_aa, b_ab, b_bb, BLOCK)
    return tl.sum(b_aa, axis=0), tl.sum(b_ab, axis=0), tl.sum(b_bb, axis=0)


@triton.jit
def unit_partials(table, n_columns, partials, tensor, row, elements, chunk, n_chunks, IS_GLOBAL: tl.constexpr):
    """Entries of the unit that a chunk belongs to, from those of all its chunks."""
    per_row = tl.maximum(tl.cdiv(elements, chunk), 1)
    first = field(table, n_columns, tensor, FIRST_CHUNK) + row * per_row
    if IS_GLOBAL:
        first, per_row = tl.zeros_like(first), tl.zeros_like(per_row) + n_chunks
    return add_partials(partials, first, per_row, PARTIALS_BLOCK)


@triton.jit(do_not_specialize=["n_tensors"])
def gram_units(
    table, n_columns, n_tensors, entries,
    A: tl.constexpr, B: tl.constexpr, VECTOR: tl.constexpr, IS_GLOBAL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Small tensors: each program has one tensor and all its units, or (global) everything."""
    acc: tl.constexpr = entries.dtype.element_ty
    first = tl.program_id(0)
    last = n_tensors if IS_GLOBAL else first + 1
    unit = field(table, n_columns, first, UNIT)
    for row in range(0, field(table, n_columns, first, ROWS)):
        aa, ab, bb = unit_dots(table, n_columns, first, last, row, acc, A, B, VECTOR, BLOCK)
        store_entries(entries, unit + row, aa, ab, bb)


@triton.jit(do_not_specialize=["first_chunk", "chunk_vectors"])
def gram_chunks(
    table, n_columns, owner, first_chunk, chunk_vectors, found_inf, partials,
    A: tl.constexpr, B: tl.constexpr, STEP: tl.constexpr, STEP_AT: tl.constexpr,
    VECTOR: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Entries of each chunk; the first chunk of a tensor also advances its step counter, if it has one."""
    acc: tl.constexpr = partials.dtype.element_ty
    tensor, row, elements, start, end, number = chunk_of(
        table, n_columns, owner, first_chunk, chunk_vectors * WIDE, VECTOR
    )
    a_start = address(table, n_columns, tensor, 0, A, VECTOR) + row * elements
    b_start = address(table, n_columns, tensor, 1, B, VECTOR) + row * elements
    zeros = tl.zeros([BLOCK], acc)
    b_aa, b_ab, b_bb = dots(a_start, b_start, start, end, elements, zeros, zeros, zeros, BLOCK)
    store_entries(partials, number, tl.sum(b_aa, axis=0), tl.sum(b_ab, axis=0), tl.sum(b_bb, axis=0))
    if STEP is not None and number == field(table, n_columns, tensor, FIRST_CHUNK):
        advance(table, n_columns, tensor, live(found_inf), STEP, STEP_AT)


@triton.jit(do_not_specialize=["first_chunk", "chunk_vectors", "n_chunks"])
def gram_sums(
    table, n_columns, owner, first_chunk, chunk_vectors, n_chunks, partials, entries,
    VECTOR: tl.constexpr, IS_GLOBAL: tl.constexpr,
):  # fmt: skip
    """Entries of each unit from those of its chunks; the program of a unit's first chunk does it."""
    chunk = chunk_vectors * WIDE
    tensor, row, elements, start, _, number = chunk_of(table, n_columns, owner, first_chunk, chunk, VECTOR)
    if is_first(number, start, IS_GLOBAL):
        aa, ab, bb = unit_partials(table, n_columns, partials, tensor, row, elements, chunk, n_chunks, IS_GLOBAL)
        store_entries(entries, field(table, n_columns, tensor, UNIT) + row, aa, ab, bb)


@triton.jit(do_not_specialize=["first_chunk", "chunk_vectors"])
def project_chunks(
    table, n_columns, owner, first_chunk, chunk_vectors, coefficients,
    A: tl.constexpr, B: tl.constexpr, VECTOR: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Task = alpha·task + beta·general; a chunk with (1, 0) is not touched."""
    acc: tl.constexpr = coefficients.dtype.element_ty
    tensor, row, elements, start, end, _ = chunk_of(table, n_columns, owner, first_chunk, chunk_vectors * WIDE, VECTOR)
    alpha, beta = load_coefficients(coefficients, field(table, n_columns, tensor, UNIT) + row)
    a_start = address(table, n_columns, tensor, 0, A, VECTOR) + row * elements
    b_start = address(table, n_columns, tensor, 1, B, VECTOR) + row * elements
    changed = (alpha != 1.0) | (beta != 0.0)
    for o in range(start, end * changed.to(tl.int64), BLOCK):
        o_block = o + tl.arange(0, BLOCK)
        inside = o_block < elements
        a = tl.load(a_start + o_block, mask=inside, other=0.0).to(acc)
        b = tl.load(b_start + o_block, mask=inside, other=0.0).to(acc)
        tl.store(a_start + o_block, combine(a, b, alpha, beta).to(A), mask=inside)


@into_contiguous
def gram_out(task: Sequence[Tensor], general: Sequence[Tensor], scope: int, *, entries: Tensor) -> None:
    """The operator `gram_out` on Triton: one launch for small tensors, else one over chunks and one over units."""
    if not task:
        entries.zero_()
        return
    lists = [contiguous(task), contiguous(general)]
    plan = plan_launches(lists, scope)
    is_global = scope == SCOPE_GLOBAL
    with on_device(entries):
        if plan.one_launch:
            for group in plan.groups:
                gram_units[(1 if is_global else group.n_tensors,)](
                    group.table, group.n_columns, group.n_tensors, entries,
                    A=group.dtype(0), B=group.dtype(1), VECTOR=group.vector, IS_GLOBAL=is_global, BLOCK=UNITS_BLOCK,
                    num_warps=UNITS_WARPS,
                )  # fmt: skip
            return
        partials = entries.new_empty(plan.n_chunks, 3)
        launch_gram_chunks(plan, None, partials)
        for group in plan.groups:
            gram_sums[(1 if is_global else group.n_chunks,)](
                *group.chunk_arguments, plan.n_chunks, partials, entries,
                VECTOR=group.vector, IS_GLOBAL=is_global, num_warps=1,
            )  # fmt: skip
            if is_global:
                return


def launch_gram_chunks(
    plan: LaunchPlan, found_inf: Tensor | None, partials: Tensor, step_at: int | None = None
) -> None:
    """Entries of all chunks; `step_at` is where the step counters are among the lists."""
    for group in plan.groups:
        if group.n_chunks:
            gram_chunks[(group.n_chunks,)](
                *group.chunk_arguments, found_inf, partials,
                A=group.dtype(0), B=group.dtype(1), STEP=None if step_at is None else group.dtype(step_at),
                STEP_AT=step_at, VECTOR=group.vector, BLOCK=CHUNKS_BLOCK, num_warps=CHUNKS_WARPS,
            )  # fmt: skip


def project_(task: Sequence[Tensor], general: Sequence[Tensor], coefficients: Tensor, scope: int) -> None:
    """The operator `project_` on Triton: one launch."""
    if not task:
        return
    projected = contiguous(task)
    lists = [projected, contiguous(general)]  # held until the launch: a plan has addresses only
    plan = plan_launches(lists, scope)
    with on_device(coefficients):
        for group in plan.groups:
            if group.n_chunks:
                project_chunks[(group.n_chunks,)](
                    *group.chunk_arguments, coefficients.contiguous(),
                    A=group.dtype(0), B=group.dtype(1), VECTOR=group.vector, BLOCK=CHUNKS_BLOCK, num_warps=CHUNKS_WARPS,
                )  # fmt: skip
    copy_back(task, projected)


OPERATORS = (gram_out, project_)
