"""Gram entries and projection over lists of tensors."""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from prograd_fast.backends.triton_kernels.launch import contiguous, copy_back, into_contiguous, on_device
from prograd_fast.backends.triton_kernels.tensor_lists import (
    ADDRESS,
    FIRST_PROGRAM,
    ROWS,
    SCOPE_GLOBAL,
    SCOPE_ROW,
    UNIT,
    VECTORS,
    WIDE,
    LaunchPlan,
    address,
    chunk_of,
    field,
    plan_launches,
    units_of,
)

CHUNKS_BLOCK, CHUNKS_WARPS = 2048, 8
PARTIALS_BLOCK = tl.constexpr(256)  # partial sums added up at once
PROJECTED = tl.constexpr(2)  # where the results are in the table, after the two gradients


@triton.jit
def load_gradients(a_start, b_start, o_block, inside, acc: tl.constexpr):
    """A block of the task gradient and of the general gradient."""
    a = tl.load(a_start + o_block, mask=inside, other=0.0).to(acc)
    b = tl.load(b_start + o_block, mask=inside, other=0.0).to(acc)
    return a, b


@triton.jit
def elements_of(rows, n_rows, o, elements, BLOCK: tl.constexpr):
    """Elements o ... o + BLOCK - 1 of some rows, (units, 1): where they are in their row, and which there are."""
    o_block = o + tl.arange(0, BLOCK)[None, :]
    return o_block, (rows < n_rows) & (o_block < elements)


@triton.jit
def dots(a_start, b_start, rows, n_rows, start, end, elements, b_aa, b_ab, b_bb, BLOCK: tl.constexpr):
    """Add a·a, a·b and b·b of elements start ... end - 1 of some rows to three blocks of sums."""
    for o in range(start, end, BLOCK):
        o_block, inside = elements_of(rows, n_rows, o, elements, BLOCK)
        a, b = load_gradients(a_start, b_start, o_block, inside, b_aa.dtype)
        b_aa += a * a
        b_ab += a * b
        b_bb += b * b
    return b_aa, b_ab, b_bb


@triton.jit
def conflict(aa, ab, bb, lambda_, noise_floor):
    """ProGrad's factors (alpha, beta) of a and b; (1, 0) where b is absent, vanishing, only rounding or not finite."""
    acc: tl.constexpr = bb.dtype
    tiny: tl.constexpr = 2.0**-1022 if acc == tl.float64 else 2.0**-126
    lambda_, noise_floor = tl.full([], lambda_, acc), tl.full([], noise_floor, acc)
    absent = (bb <= noise_floor * aa * noise_floor) & (aa < float("inf"))
    usable = (bb >= tiny) & (bb < float("inf")) & ~absent
    quotient = tl.minimum(ab, 0.0) / tl.where(usable, bb, 1.0)
    beta = tl.where(usable & (tl.abs(quotient) < float("inf")), -lambda_ * quotient, 0.0)
    return tl.full(beta.shape, 1.0, acc), beta


@triton.jit
def combine(a, b, alpha, beta):
    """Alpha·a + beta·b, where a non-finite b does not matter for beta = 0."""
    return alpha * a + tl.where(beta == 0.0, 0.0, beta * b)


@triton.jit
def load_coefficients(coefficients, unit):
    """A rule's factors (alpha, beta) for each unit."""
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
def store_entries(entries, unit, aa, ab, bb, inside=None):
    """One row of Gram entries for each unit."""
    tl.store(entries + unit * 3, aa, mask=inside)
    tl.store(entries + unit * 3 + 1, ab, mask=inside)
    tl.store(entries + unit * 3 + 2, bb, mask=inside)


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
    table, n_columns, first, last, rows, acc: tl.constexpr,
    A: tl.constexpr, B: tl.constexpr, VECTOR: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Entries of whole units by one program, (units, 1): rows of tensor `first`, or all of first ... last - 1."""
    UNITS: tl.constexpr = rows.shape[0]
    b_aa, b_ab = tl.zeros([UNITS, BLOCK], acc), tl.zeros([UNITS, BLOCK], acc)
    b_bb = tl.zeros([UNITS, BLOCK], acc)
    for tensor in range(first, last):
        elements = field(table, n_columns, tensor, VECTORS) * VECTOR
        n_rows = field(table, n_columns, tensor, ROWS)
        a_start = address(table, n_columns, tensor, 0, A, VECTOR) + rows * elements
        b_start = address(table, n_columns, tensor, 1, B, VECTOR) + rows * elements
        b_aa, b_ab, b_bb = dots(a_start, b_start, rows, n_rows, 0, elements, elements, b_aa, b_ab, b_bb, BLOCK)
    return (
        tl.sum(b_aa, axis=1, keep_dims=True), tl.sum(b_ab, axis=1, keep_dims=True), tl.sum(b_bb, axis=1, keep_dims=True)
    )  # fmt: skip


@triton.jit
def unit_partials(table, n_columns, partials, tensor, row, elements, chunk, n_programs, IS_GLOBAL: tl.constexpr):
    """Entries of the unit that a chunk belongs to, from those of all its chunks."""
    per_row = tl.maximum(tl.cdiv(elements, chunk), 1)
    first = field(table, n_columns, tensor, FIRST_PROGRAM) + row * per_row
    if IS_GLOBAL:
        first, per_row = tl.zeros_like(first), tl.zeros_like(per_row) + n_programs
    return add_partials(partials, first, per_row, PARTIALS_BLOCK)


@triton.jit
def unit_factors(
    table, n_columns, first, last, rows, entries, coefficients, lambda_, noise_floor,
    A: tl.constexpr, B: tl.constexpr, VECTOR: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The factors (alpha, beta) of a program's units: a rule's, or ProGrad's from the entries, which are stored."""
    acc: tl.constexpr = entries.dtype.element_ty
    n_rows = field(table, n_columns, first, ROWS)
    unit = field(table, n_columns, first, UNIT) + tl.minimum(rows, n_rows - 1)  # there is none beyond the last
    if coefficients is not None:
        alpha, beta = load_coefficients(coefficients, unit)
    else:
        # the update reads the gradients a second time, from the caches
        aa, ab, bb = unit_dots(table, n_columns, first, last, rows, acc, A, B, VECTOR, BLOCK)
        store_entries(entries, unit, aa, ab, bb, rows < n_rows)
        alpha, beta = conflict(aa, ab, bb, lambda_, noise_floor)
    return alpha, beta


@triton.jit
def chunk_factors(
    table, n_columns, tensor, row, elements, start, number, chunk, n_programs, partials, entries, coefficients,
    lambda_, noise_floor, IS_GLOBAL: tl.constexpr,
):  # fmt: skip
    """The factors (alpha, beta) of a chunk: a rule's, or ProGrad's from the entries of all chunks of its unit."""
    unit = field(table, n_columns, tensor, UNIT) + row
    if coefficients is not None:
        alpha, beta = load_coefficients(coefficients, unit)
    else:
        aa, ab, bb = unit_partials(table, n_columns, partials, tensor, row, elements, chunk, n_programs, IS_GLOBAL)
        if is_first(number, start, IS_GLOBAL):
            store_entries(entries, unit, aa, ab, bb)
        alpha, beta = conflict(aa, ab, bb, lambda_, noise_floor)
    return alpha, beta


@triton.jit(do_not_specialize=["first_program", "n_tensors"])
def gram_units(
    table, n_columns, owner, first_program, n_tensors, entries,
    A: tl.constexpr, B: tl.constexpr, VECTOR: tl.constexpr, IS_GLOBAL: tl.constexpr, UNITS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Small units: each program has one tensor, some rows, or (global) everything."""
    acc: tl.constexpr = entries.dtype.element_ty
    first, last, rows = units_of(table, n_columns, owner, first_program, n_tensors, UNITS, IS_GLOBAL)
    aa, ab, bb = unit_dots(table, n_columns, first, last, rows, acc, A, B, VECTOR, BLOCK)
    inside = rows < field(table, n_columns, first, ROWS)
    store_entries(entries, field(table, n_columns, first, UNIT) + rows, aa, ab, bb, inside)


@triton.jit(do_not_specialize=["first_program", "chunk_vectors"])
def gram_chunks(
    table, n_columns, owner, first_program, chunk_vectors, found_inf, partials,
    A: tl.constexpr, B: tl.constexpr, STEP: tl.constexpr, STEP_AT: tl.constexpr,
    VECTOR: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Entries of each chunk; the first chunk of a tensor also advances its step counter, if it has one."""
    acc: tl.constexpr = partials.dtype.element_ty
    tensor, row, elements, start, end, number = chunk_of(
        table, n_columns, owner, first_program, chunk_vectors * WIDE, VECTOR
    )
    a_start = address(table, n_columns, tensor, 0, A, VECTOR) + row * elements
    b_start = address(table, n_columns, tensor, 1, B, VECTOR) + row * elements
    zeros = tl.zeros([1, BLOCK], acc)
    # the row is row 0 of one, as of a_start on
    b_aa, b_ab, b_bb = dots(a_start, b_start, 0, 1, start, end, elements, zeros, zeros, zeros, BLOCK)
    store_entries(partials, number, tl.sum(b_aa), tl.sum(b_ab), tl.sum(b_bb))
    if STEP is not None and number == field(table, n_columns, tensor, FIRST_PROGRAM):
        advance(table, n_columns, tensor, live(found_inf), STEP, STEP_AT)


@triton.jit(do_not_specialize=["first_program", "chunk_vectors", "n_programs"])
def gram_sums(
    table, n_columns, owner, first_program, chunk_vectors, n_programs, partials, entries,
    VECTOR: tl.constexpr, IS_GLOBAL: tl.constexpr,
):  # fmt: skip
    """Entries of each unit from those of its chunks; the program of a unit's first chunk does it."""
    chunk = chunk_vectors * WIDE
    tensor, row, elements, start, _, number = chunk_of(table, n_columns, owner, first_program, chunk, VECTOR)
    if is_first(number, start, IS_GLOBAL):
        aa, ab, bb = unit_partials(table, n_columns, partials, tensor, row, elements, chunk, n_programs, IS_GLOBAL)
        store_entries(entries, field(table, n_columns, tensor, UNIT) + row, aa, ab, bb)


@triton.jit
def project_range(
    table, n_columns, tensor, rows, start, end, elements, alpha, beta,
    A: tl.constexpr, B: tl.constexpr, VECTOR: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Elements start ... end - 1 of rows: alpha·a + beta·b, bit for bit a where that is all; then nothing in place."""
    acc: tl.constexpr = alpha.dtype
    offset, n_rows = rows * elements, field(table, n_columns, tensor, ROWS)
    a_start = address(table, n_columns, tensor, 0, A, VECTOR) + offset
    b_start = address(table, n_columns, tensor, 1, B, VECTOR) + offset
    g_start = address(table, n_columns, tensor, PROJECTED, A, VECTOR) + offset
    changed = (alpha != 1.0) | (beta != 0.0)
    apart = field(table, n_columns, tensor, ADDRESS) != field(table, n_columns, tensor, ADDRESS + PROJECTED)
    needed = changed.to(tl.int32) + apart.to(tl.int32) > 0
    for o in range(start, end, BLOCK):
        o_block, inside = elements_of(rows, n_rows, o, elements, BLOCK)
        inside = inside & needed
        a, b = load_gradients(a_start, b_start, o_block, inside, acc)
        tl.store(g_start + o_block, tl.where(changed, combine(a, b, alpha, beta), a).to(A), mask=inside)


@triton.jit(do_not_specialize=["first_program", "n_tensors"])
def project_units(
    table, n_columns, owner, first_program, n_tensors, entries, coefficients, lambda_: tl.float64,
    noise_floor: tl.float64, A: tl.constexpr, B: tl.constexpr, VECTOR: tl.constexpr, IS_GLOBAL: tl.constexpr,
    UNITS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Small units in one launch: each program has one tensor, some rows, or (global) everything."""
    first, last, rows = units_of(table, n_columns, owner, first_program, n_tensors, UNITS, IS_GLOBAL)
    alpha, beta = unit_factors(
        table, n_columns, first, last, rows, entries, coefficients, lambda_, noise_floor, A, B, VECTOR, BLOCK
    )
    for tensor in range(first, last):
        elements = field(table, n_columns, tensor, VECTORS) * VECTOR
        project_range(table, n_columns, tensor, rows, 0, elements, elements, alpha, beta, A, B, VECTOR, BLOCK)


@triton.jit(do_not_specialize=["first_program", "chunk_vectors", "n_programs"])
def project_chunks(
    table, n_columns, owner, first_program, chunk_vectors, n_programs, partials, entries, coefficients,
    lambda_: tl.float64, noise_floor: tl.float64,
    A: tl.constexpr, B: tl.constexpr, VECTOR: tl.constexpr, IS_GLOBAL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A rule's coefficients, or the second of two launches: each program has one chunk."""
    chunk = chunk_vectors * WIDE
    tensor, row, elements, start, end, number = chunk_of(table, n_columns, owner, first_program, chunk, VECTOR)
    alpha, beta = chunk_factors(
        table, n_columns, tensor, row, elements, start, number, chunk, n_programs, partials, entries, coefficients,
        lambda_, noise_floor, IS_GLOBAL,
    )  # fmt: skip
    rows = row + tl.arange(0, 1)[:, None]
    project_range(table, n_columns, tensor, rows, start, end, elements, alpha, beta, A, B, VECTOR, BLOCK)


@into_contiguous
def gram_out(task: Sequence[Tensor], general: Sequence[Tensor], scope: int, *, entries: Tensor) -> None:
    """The operator `gram_out` on Triton: one launch for small units, else one over chunks and one over units."""
    if not task:
        entries.zero_()
        return
    lists = [contiguous(task), contiguous(general)]
    plan = plan_launches(lists, scope)
    is_global = scope == SCOPE_GLOBAL
    with on_device(entries):
        if plan.one_launch:
            for group in plan.groups:
                if group.n_programs:
                    gram_units[(group.n_programs,)](
                        *group.unit_arguments, entries,
                        A=group.dtype(0), B=group.dtype(1), VECTOR=group.vector, IS_GLOBAL=is_global, **plan.tile,
                    )  # fmt: skip
            return
        partials = entries.new_empty(plan.n_programs, 3)
        launch_gram_chunks(plan, None, partials)
        for group in plan.groups:
            gram_sums[(1 if is_global else group.n_programs,)](
                *group.chunk_arguments, plan.n_programs, partials, entries,
                VECTOR=group.vector, IS_GLOBAL=is_global, num_warps=1,
            )  # fmt: skip
            if is_global:
                return


def launch_gram_chunks(
    plan: LaunchPlan, found_inf: Tensor | None, partials: Tensor, step_at: int | None = None
) -> None:
    """Entries of all chunks; `step_at` is where the step counters are among the lists."""
    for group in plan.groups:
        if group.n_programs:
            gram_chunks[(group.n_programs,)](
                *group.chunk_arguments, found_inf, partials,
                A=group.dtype(0), B=group.dtype(1), STEP=None if step_at is None else group.dtype(step_at),
                STEP_AT=step_at, VECTOR=group.vector, BLOCK=CHUNKS_BLOCK, num_warps=CHUNKS_WARPS,
            )  # fmt: skip


def project_out(
    task: Sequence[Tensor],
    general: Sequence[Tensor],
    coefficients: Tensor | None,
    lambda_: float,
    noise_floor: float,
    scope: int,
    *,
    entries: Tensor,
    projected: Sequence[Tensor],
) -> None:
    """The operator `project_out` on Triton: one launch for small units or a rule's coefficients, else two."""
    if not task:
        if coefficients is None:
            entries.zero_()
        return
    results, (rows,) = contiguous(projected), contiguous([entries])
    coefficients = None if coefficients is None else coefficients.contiguous()
    lists = [contiguous(task), contiguous(general), results]  # held until the launch: a plan has addresses only
    # a rule's coefficients need no sums, so that tensors may be shared out further
    plan = plan_launches(lists, scope, whole_units=coefficients is None or scope == SCOPE_ROW)
    is_global = scope == SCOPE_GLOBAL
    rule = lambda_, noise_floor
    with on_device(entries):
        partials = None
        if coefficients is None and not plan.one_launch:
            partials = rows.new_empty(plan.n_programs, 3)
            launch_gram_chunks(plan, None, partials)
        for group in plan.groups:
            kinds = {"A": group.dtype(0), "B": group.dtype(1), "VECTOR": group.vector, "IS_GLOBAL": is_global}
            if not group.n_programs:
                continue
            if plan.one_launch:
                project_units[(group.n_programs,)](
                    *group.unit_arguments, rows, coefficients, *rule, **kinds, **plan.tile
                )
            else:
                project_chunks[(group.n_programs,)](
                    *group.chunk_arguments, plan.n_programs, partials, rows, coefficients, *rule,
                    **kinds, BLOCK=CHUNKS_BLOCK, num_warps=CHUNKS_WARPS,
                )  # fmt: skip
    copy_back([entries, *projected], [rows, *results])


OPERATORS = (gram_out, project_out)
