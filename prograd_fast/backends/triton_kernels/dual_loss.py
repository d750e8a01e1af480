"""Dual loss over logits: one launch for the rows, and one that adds them up in a fixed order.

A row is a block of registers of one program. Longer rows are cut into parts of a block each: one launch has the sums of
every part, and the next one, from those of all parts of its row, the cotangents of every part and the losses.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from prograd_fast.backends.triton_kernels.launch import contiguous, into_contiguous, on_device
from prograd_fast.backends.triton_kernels.sums import exp_anchor, row_scale

ONE_BLOCK = 8192  # the longest row that is kept in registers: 16 logits of each kind for each of 512 threads
PART = 4096  # of a longer row: 16 for each of 256 threads
ROWS_BLOCK = 1024
PART_ROWS = 32  # rows whose parts are merged at a time
PIECE = tl.constexpr(8)  # elements from one address to the next that suits the widest access of every dtype
LOG2_E, LN_2 = tl.constexpr(1 / math.log(2)), tl.constexpr(math.log(2))
# what `statistics` holds of each part, (7, rows, parts); the label's logit stands in the first part
MAX_Z, SUM_Z, SUM_ZT, MAX_T, SUM_T = (tl.constexpr(i) for i in range(5))
CROSS, AT_LABEL = tl.constexpr(5), tl.constexpr(6)


@triton.jit
def _row(
    student, teacher, cotangents, row, n_rows, n_vectors, student_stride, teacher_stride,
    VECTOR: tl.constexpr, ENDS: tl.constexpr,
):  # fmt: skip
    """Where a row is: four pointers to slot 0, the slot of class 0, and the first and last slot of whole pieces.

    With ENDS the slots start where an address suits wide accesses, up to 7 elements before the row, and the pieces at
    its two ends are not all of the row.
    """
    n_columns = n_vectors * VECTOR
    half = n_rows.to(tl.int64) * n_columns
    if ENDS:
        first = row * n_columns
        start, before = first // PIECE * PIECE, (first % PIECE).to(tl.int32)
        whole_begin, whole_end = (before + PIECE - 1) // PIECE * PIECE, (before + n_columns) // PIECE * PIECE
        student += start
        teacher += start
        task_out = cotangents + start
        general_out = task_out + half // PIECE * PIECE  # a multiple, so that one rule holds for both halves
    else:
        before, whole_begin, whole_end = 0, 0, n_columns
        student += row * student_stride * VECTOR
        teacher += row * teacher_stride * VECTOR
        task_out = cotangents + row * n_columns
        general_out = task_out + half
    return student, teacher, task_out, general_out, before, whole_begin, whole_end


@triton.jit
def _ends(part, before, whole_begin, whole_end, n_columns, BLOCK: tl.constexpr):
    """The slots at both ends of a row that are of no whole piece, and which of them are in this part."""
    slots = tl.arange(0, 2 * PIECE)
    tail = slots - PIECE + whole_end
    in_head = (slots >= before) & (slots < whole_begin) & (slots < before + n_columns) & (part == 0)
    in_tail = (tail < before + n_columns) & (whole_end >= whole_begin) & (part == whole_end // BLOCK)
    return tl.where(slots < PIECE, slots, tail), tl.where(slots < PIECE, in_head, in_tail)


@triton.jit
def _logits(student, teacher, offset, slots, inside, before, acc: tl.constexpr):
    """Student and offset teacher logits, -inf outside."""
    z = tl.load(student + slots, mask=inside, other=float("-inf")).to(acc)
    t = tl.load(teacher + slots, mask=inside, other=float("-inf")).to(acc)
    if offset is not None:
        t += tl.load(offset + slots - before, mask=inside, other=0.0).to(acc)
    return z, t


@triton.jit
def _powers(z, t, max_z, max_t, per_t, kl, UNIT_T: tl.constexpr):
    """e^(z - m), e^((z - m)/T), e^((t - m)/T), and the third times log2 of its ratio to the second.

    per_t: log2(e)/T; kl: 1, or 0 for the soft cross-entropy, which leaves the teacher out of the ratio.
    """
    dz = z - max_z
    u, v = dz * per_t, (t - max_t) * per_t
    e_zt, e_t = tl.exp2(u), tl.exp2(v)
    e_z = e_zt
    if not UNIT_T:
        e_z = tl.exp2(dz * LOG2_E)
    # a class that the teacher excludes adds nothing: 0 · log 0 = 0
    return e_z, e_zt, e_t, tl.where(e_t > 0, e_t * (v * kl - u), 0.0)


@triton.jit
def _store(task_out, general_out, slots, inside, e_z, e_zt, e_t, label_slot, task_factor, by_z, by_zt, by_t):
    """Store cotangents: the powers times what belongs to the row."""
    task = e_z * by_z - tl.where(slots == label_slot, task_factor, 0.0)
    tl.store(task_out + slots, task.to(task_out.dtype.element_ty), mask=inside)
    tl.store(general_out + slots, (e_zt * by_zt - e_t * by_t).to(general_out.dtype.element_ty), mask=inside)


@triton.jit
def _losses(max_z, sum_z, sum_zt, sum_t, cross, z_label, temperature, kl, acc: tl.constexpr):
    """Task and general loss of rows, without their weights."""
    general = cross * LN_2 / sum_t - tl.where(kl != 0, tl.log(sum_t), 0.0) + tl.log(sum_zt)
    return tl.log(sum_z) - (z_label - max_z), general * tl.full([], temperature * temperature, acc)


@triton.jit
def _factor(weight, row, scale, acc: tl.constexpr):
    """The weight of a row times a number."""
    factor = tl.full([], scale, acc)
    if weight is not None:
        factor *= tl.load(weight + row).to(acc)
    return factor


@triton.jit
def _label(labels, row, n_columns, task_factor):
    """The label, -1 where it is no class, and the factor of the task's cotangents: NaN for such a row.

    Nothing is read from outside the row, and nobody overlooks it.
    """
    label = tl.load(labels + row).to(tl.int64)
    known = (label >= 0) & (label < n_columns)
    return tl.where(known, label, -1), tl.where(known, task_factor, float("nan"))


@triton.jit(do_not_specialize=["n_rows", "n_vectors", "student_stride", "teacher_stride", "soft_ce"])
def dual_loss_rows(
    student, teacher, labels, offset, task_weight, general_weight, losses, cotangents, hits,
    n_rows, n_vectors, student_stride, teacher_stride, soft_ce, temperature: tl.float64, scale: tl.float64,
    VECTOR: tl.constexpr, BLOCK: tl.constexpr, ENDS: tl.constexpr, UNIT_T: tl.constexpr,
):  # fmt: skip
    """Row losses (not yet scaled), both cotangents, and whether the row's argmax is its label.

    Sizes and strides count vectors of VECTOR elements, which tells the compiler how the rows are aligned.
    """
    acc: tl.constexpr = losses.dtype.element_ty
    row = tl.program_id(0).to(tl.int64)
    n_columns = n_vectors * VECTOR
    task_factor = _factor(task_weight, row, scale, acc)
    general_factor = _factor(general_weight, row, scale * temperature, acc)  # T², and 1/T of the softmax
    label, task_factor = _label(labels, row, n_columns, task_factor)
    per_t, kl = tl.full([], LOG2_E / temperature, acc), tl.where(soft_ce != 0, 0.0, 1.0).to(acc)
    student, teacher, task_out, general_out, before, whole_begin, whole_end = _row(
        student, teacher, cotangents, row, n_rows, n_vectors, student_stride, teacher_stride, VECTOR, ENDS
    )
    z_label = tl.load(student + before + label, mask=label >= 0, other=float("nan")).to(acc)

    # maximum and first argmax; T > 0 does not move the maximum
    slots = tl.arange(0, BLOCK)
    inside = slots < whole_end
    if ENDS:
        inside = inside & (slots >= whole_begin)
    z, t = _logits(student, teacher, offset, slots, inside, before, acc)
    max_z, max_t = tl.max(z, axis=0), tl.max(t, axis=0)
    if ENDS:
        end_slots, at_end = _ends(0, before, whole_begin, whole_end, n_columns, BLOCK)
        end_z, end_t = _logits(student, teacher, offset, end_slots, at_end, before, acc)
        max_z, max_t = tl.maximum(max_z, tl.max(end_z, axis=0)), tl.maximum(max_t, tl.max(end_t, axis=0))
    best = tl.min(tl.where(z == max_z, slots, before + n_columns), axis=0)
    if ENDS:
        best = tl.minimum(best, tl.min(tl.where(end_z == max_z, end_slots, before + n_columns), axis=0))
    max_z, max_t = exp_anchor(max_z), exp_anchor(max_t)

    # sums; the powers stay where they are
    e_z, e_zt, e_t, terms = _powers(z, t, max_z, max_t, per_t, kl, UNIT_T)
    sum_z, sum_t, cross = tl.sum(e_z, axis=0), tl.sum(e_t, axis=0), tl.sum(terms, axis=0)
    sum_zt = sum_z
    if not UNIT_T:
        sum_zt = tl.sum(e_zt, axis=0)
    if ENDS:
        end_e_z, end_e_zt, end_e_t, end_terms = _powers(end_z, end_t, max_z, max_t, per_t, kl, UNIT_T)
        sum_z += tl.sum(end_e_z, axis=0)
        sum_zt += tl.sum(end_e_zt, axis=0)
        sum_t += tl.sum(end_e_t, axis=0)
        cross += tl.sum(end_terms, axis=0)

    by_z, by_zt, by_t = task_factor / sum_z, general_factor / sum_zt, general_factor / sum_t
    _store(
        task_out, general_out, slots, inside, e_z, e_zt, e_t, before + label, task_factor, by_z, by_zt, by_t
    )  # fmt: skip
    if ENDS:
        _store(
            task_out, general_out, end_slots, at_end, end_e_z, end_e_zt, end_e_t, before + label, task_factor,
            by_z, by_zt, by_t,
        )  # fmt: skip
    task, general = _losses(max_z, sum_z, sum_zt, sum_t, cross, z_label, temperature, kl, acc)
    tl.store(losses + row, task * _factor(task_weight, row, 1.0, acc))
    tl.store(losses + n_rows + row, general * _factor(general_weight, row, 1.0, acc))
    tl.store(hits + row, (best == before + label).to(tl.int64))


# ---- rows in parts


@triton.jit(do_not_specialize=["n_rows", "n_vectors", "n_parts", "student_stride", "teacher_stride", "soft_ce"])
def dual_loss_sums(
    student, teacher, labels, offset, statistics, bests,
    n_rows, n_vectors, n_parts, student_stride, teacher_stride, soft_ce, temperature: tl.float64,
    VECTOR: tl.constexpr, BLOCK: tl.constexpr, ENDS: tl.constexpr, UNIT_T: tl.constexpr,
):  # fmt: skip
    """Maxima, sums relative to them, and the first argmax of one part of a row."""
    acc: tl.constexpr = statistics.dtype.element_ty
    program = tl.program_id(0).to(tl.int64)
    row, part = program // n_parts, (program % n_parts).to(tl.int32)
    n_columns = n_vectors * VECTOR
    per_t, kl = tl.full([], LOG2_E / temperature, acc), tl.where(soft_ce != 0, 0.0, 1.0).to(acc)
    student, teacher, _no_task, _no_general, before, whole_begin, whole_end = _row(
        student, teacher, student, row, n_rows, n_vectors, student_stride, teacher_stride, VECTOR, ENDS
    )
    slots = part * BLOCK + tl.arange(0, BLOCK)
    inside = slots < whole_end
    if ENDS:
        inside = inside & (slots >= whole_begin)
    z, t = _logits(student, teacher, offset, slots, inside, before, acc)
    top_z, top_t = tl.max(z, axis=0), tl.max(t, axis=0)
    if ENDS:
        end_slots, at_end = _ends(part, before, whole_begin, whole_end, n_columns, BLOCK)
        end_z, end_t = _logits(student, teacher, offset, end_slots, at_end, before, acc)
        top_z, top_t = tl.maximum(top_z, tl.max(end_z, axis=0)), tl.maximum(top_t, tl.max(end_t, axis=0))
    best = tl.min(tl.where(inside & (z == top_z), slots, before + n_columns), axis=0)
    if ENDS:
        best = tl.minimum(best, tl.min(tl.where(at_end & (end_z == top_z), end_slots, before + n_columns), axis=0))
    max_z, max_t = exp_anchor(top_z), exp_anchor(top_t)
    e_z, e_zt, e_t, terms = _powers(z, t, max_z, max_t, per_t, kl, UNIT_T)
    sum_z, sum_zt, sum_t, cross = (
        tl.sum(e_z, axis=0), tl.sum(e_zt, axis=0), tl.sum(e_t, axis=0), tl.sum(terms, axis=0)
    )  # fmt: skip
    if ENDS:
        e_z, e_zt, e_t, terms = _powers(end_z, end_t, max_z, max_t, per_t, kl, UNIT_T)
        sum_z += tl.sum(e_z, axis=0)
        sum_zt += tl.sum(e_zt, axis=0)
        sum_t += tl.sum(e_t, axis=0)
        cross += tl.sum(terms, axis=0)
    statistics += program
    size = n_rows.to(tl.int64) * n_parts
    tl.store(statistics + MAX_Z * size, top_z)
    tl.store(statistics + SUM_Z * size, sum_z)
    tl.store(statistics + SUM_ZT * size, sum_zt)
    tl.store(statistics + MAX_T * size, top_t)
    tl.store(statistics + SUM_T * size, sum_t)
    tl.store(statistics + CROSS * size, cross)
    tl.store(bests + program, best - before)
    if part == 0:
        label, _no_factor = _label(labels, row, n_columns, 0.0)
        z_label = tl.load(student + before + label, mask=label >= 0, other=float("nan")).to(acc)
        tl.store(statistics + AT_LABEL * size, z_label)


@triton.jit
def _merged(statistics, rows, inside, n_rows, n_parts, per_t, kl, PARTS: tl.constexpr, acc: tl.constexpr):
    """Maxima and sums of rows, from those of their parts."""
    parts = tl.arange(0, PARTS)
    inside = inside[:, None] & (parts < n_parts)[None, :]
    at = statistics + rows[:, None] * n_parts + parts[None, :]
    size = n_rows.to(tl.int64) * n_parts
    top_z = tl.load(at + MAX_Z * size, mask=inside, other=float("-inf")).to(acc)
    top_t = tl.load(at + MAX_T * size, mask=inside, other=float("-inf")).to(acc)
    sum_z = tl.load(at + SUM_Z * size, mask=inside, other=0.0).to(acc)
    sum_zt = tl.load(at + SUM_ZT * size, mask=inside, other=0.0).to(acc)
    sum_t = tl.load(at + SUM_T * size, mask=inside, other=0.0).to(acc)
    cross = tl.load(at + CROSS * size, mask=inside, other=0.0).to(acc)
    max_z, max_t = exp_anchor(tl.max(top_z, axis=1)), exp_anchor(tl.max(top_t, axis=1))
    dz, dt = top_z - max_z[:, None], top_t - max_t[:, None]
    u, v = dz * per_t, dt * per_t
    moved_t = sum_t * tl.exp2(v)
    # what has vanished takes its infinities along; NaN goes on
    moved_cross = tl.where(moved_t == 0, 0.0, tl.exp2(v) * (cross + sum_t * (tl.where(kl != 0, v, 0.0) - u)))
    return (
        top_z, max_z, tl.sum(sum_z * tl.exp2(dz * LOG2_E), axis=1), tl.sum(sum_zt * tl.exp2(u), axis=1),
        max_t, tl.sum(moved_t, axis=1), tl.sum(moved_cross, axis=1),
    )  # fmt: skip


@triton.jit
def _finish(
    labels, task_weight, general_weight, statistics, bests, losses, correct, n_rows, n_columns, n_parts,
    reduction, per_t, kl, temperature, scale, PARTS: tl.constexpr, ROWS: tl.constexpr, acc: tl.constexpr,
):  # fmt: skip
    """The losses of the rows, and what they add up to, in the order of the rows."""
    b_task, b_general, b_hits = tl.zeros([ROWS], acc), tl.zeros([ROWS], acc), tl.zeros([ROWS], tl.int64)
    parts = tl.arange(0, PARTS)
    for start in range(0, n_rows, ROWS):
        rows = (start + tl.arange(0, ROWS)).to(tl.int64)
        inside = rows < n_rows
        top_z, max_z, sum_z, sum_zt, _, sum_t, cross = _merged(
            statistics, rows, inside, n_rows, n_parts, per_t, kl, PARTS, acc
        )
        at_label = statistics + AT_LABEL * (n_rows.to(tl.int64) * n_parts) + rows * n_parts
        z_label = tl.load(at_label, mask=inside, other=0.0).to(acc)
        task, general = _losses(max_z, sum_z, sum_zt, sum_t, cross, z_label, temperature, kl, acc)
        if task_weight is not None:
            task *= tl.load(task_weight + rows, mask=inside, other=0.0).to(acc)
        if general_weight is not None:
            general *= tl.load(general_weight + rows, mask=inside, other=0.0).to(acc)
        of_parts = inside[:, None] & (parts < n_parts)[None, :]
        best = tl.load(bests + rows[:, None] * n_parts + parts[None, :], mask=of_parts, other=n_columns).to(tl.int64)
        best = tl.min(tl.where(top_z == tl.max(top_z, axis=1)[:, None], best, n_columns), axis=1)
        b_hits += (inside & (best == tl.load(labels + rows, mask=inside, other=-1).to(tl.int64))).to(tl.int64)
        if reduction == 0:
            tl.store(losses + rows, task, mask=inside)
            tl.store(losses + n_rows + rows, general, mask=inside)
        b_task += tl.where(inside, task, 0.0)
        b_general += tl.where(inside, general, 0.0)
    tl.store(correct, tl.sum(b_hits, axis=0))
    if reduction != 0:
        tl.store(losses, tl.sum(b_task, axis=0) * tl.full([], scale, acc))
        tl.store(losses + 1, tl.sum(b_general, axis=0) * tl.full([], scale, acc))


@triton.jit(
    do_not_specialize=["n_rows", "n_vectors", "n_parts", "student_stride", "teacher_stride", "soft_ce", "reduction"]
)
def dual_loss_cotangents(
    student, teacher, labels, offset, task_weight, general_weight, statistics, bests, losses, cotangents, correct,
    n_rows, n_vectors, n_parts, student_stride, teacher_stride, soft_ce, reduction,
    temperature: tl.float64, scale: tl.float64,
    VECTOR: tl.constexpr, BLOCK: tl.constexpr, ENDS: tl.constexpr, UNIT_T: tl.constexpr,
    PARTS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Both cotangents of one part of a row; by the first program, the losses of all rows."""
    acc: tl.constexpr = statistics.dtype.element_ty
    n_columns = n_vectors * VECTOR
    per_t, kl = tl.full([], LOG2_E / temperature, acc), tl.where(soft_ce != 0, 0.0, 1.0).to(acc)
    program = tl.program_id(0).to(tl.int64) - 1
    if program < 0:
        _finish(
            labels, task_weight, general_weight, statistics, bests, losses, correct, n_rows, n_columns, n_parts,
            reduction, per_t, kl, temperature, scale, PARTS, ROWS, acc,
        )  # fmt: skip
    else:
        row, part = program // n_parts, (program % n_parts).to(tl.int32)
        task_factor = _factor(task_weight, row, scale, acc)
        general_factor = _factor(general_weight, row, scale * temperature, acc)  # T², and 1/T of the softmax
        label, task_factor = _label(labels, row, n_columns, task_factor)
        student, teacher, task_out, general_out, before, whole_begin, whole_end = _row(
            student, teacher, cotangents, row, n_rows, n_vectors, student_stride, teacher_stride, VECTOR, ENDS
        )
        one = tl.arange(0, 1)
        _, max_z, sum_z, sum_zt, max_t, sum_t, _ = _merged(
            statistics, row + one, one == 0, n_rows, n_parts, per_t, kl, PARTS, acc
        )
        by_z, by_zt, by_t = task_factor / sum_z, general_factor / sum_zt, general_factor / sum_t
        slots = part * BLOCK + tl.arange(0, BLOCK)
        inside = slots < whole_end
        if ENDS:
            inside = inside & (slots >= whole_begin)
        z, t = _logits(student, teacher, offset, slots, inside, before, acc)
        e_z, e_zt, e_t, _ = _powers(z, t, max_z, max_t, per_t, kl, UNIT_T)
        _store(
            task_out, general_out, slots, inside, e_z, e_zt, e_t, before + label, task_factor, by_z, by_zt, by_t
        )  # fmt: skip
        if ENDS:
            slots, inside = _ends(part, before, whole_begin, whole_end, n_columns, BLOCK)
            z, t = _logits(student, teacher, offset, slots, inside, before, acc)
            e_z, e_zt, e_t, _ = _powers(z, t, max_z, max_t, per_t, kl, UNIT_T)
            _store(
                task_out, general_out, slots, inside, e_z, e_zt, e_t, before + label, task_factor, by_z, by_zt, by_t
            )  # fmt: skip


# ---- the sum over the rows


@triton.jit(do_not_specialize=["n_rows"])
def reduce_rows(row_losses, hits, losses, correct, n_rows, scale: tl.float64, SUM: tl.constexpr, BLOCK: tl.constexpr):
    """Count the hits and, with SUM, add the row losses up; one program, so the order is fixed."""
    acc: tl.constexpr = losses.dtype.element_ty
    b_task, b_general, b_hits = tl.zeros([BLOCK], acc), tl.zeros([BLOCK], acc), tl.zeros([BLOCK], tl.int64)
    for start in range(0, n_rows, BLOCK):
        rows = start + tl.arange(0, BLOCK)
        inside = rows < n_rows
        b_hits += tl.load(hits + rows, mask=inside, other=0).to(tl.int64)
        if SUM:
            b_task += tl.load(row_losses + rows, mask=inside, other=0.0).to(acc)
            b_general += tl.load(row_losses + n_rows + rows, mask=inside, other=0.0).to(acc)
    tl.store(correct, tl.sum(b_hits, axis=0))
    if SUM:
        factor = tl.full([], scale, acc)
        tl.store(losses, tl.sum(b_task, axis=0) * factor)
        tl.store(losses + 1, tl.sum(b_general, axis=0) * factor)


def reduce(row_losses: Tensor, hits: Tensor, losses: Tensor, correct: Tensor, reduction: int) -> None:
    """Fill `losses` and `correct` from what the rows gave; `row_losses` is `losses` where nothing is added up."""
    n_rows = hits.numel()
    reduce_rows[(1,)](
        row_losses, hits, losses, correct, n_rows, row_scale(reduction, n_rows), SUM=reduction != 0, BLOCK=ROWS_BLOCK
    )


# ---- the operator


def _has_ends(student: Tensor, teacher: Tensor, cotangents: Tensor) -> bool:
    """Whether rows that start anywhere start at the same place of a piece in all three, and in both cotangents."""
    piece, n_columns = PIECE.value, student.shape[1]
    rows = all(x.stride(0) == n_columns and x.data_ptr() % 16 == 0 for x in (student, teacher))
    return rows and cotangents.data_ptr() % 16 == 0 and n_columns % piece != 0 and student.numel() % piece == 0


@into_contiguous
def dual_loss_out(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    teacher_offset: Tensor | None,
    task_weight: Tensor | None,
    general_weight: Tensor | None,
    temperature: float,
    soft_ce: bool,
    reduction: int,
    *,
    losses: Tensor,
    cotangents: Tensor,
    correct: Tensor,
) -> None:
    """The operator `dual_loss_out` on Triton: two launches, one for a single row; no value read back."""
    n_rows, n_columns = student.shape
    student = student if student.stride(1) == 1 else student.contiguous()
    teacher = teacher if teacher.stride(1) == 1 else teacher.contiguous()
    offset, task_weight, general_weight = contiguous([teacher_offset, task_weight, general_weight])
    ends = _has_ends(student, teacher, cotangents)
    vector = 1 if ends else math.gcd(8, n_columns, student.stride(0), teacher.stride(0))
    sizes = (n_columns // vector, student.stride(0) // vector, teacher.stride(0) // vector)
    how = {"VECTOR": vector, "ENDS": ends, "UNIT_T": temperature == 1}
    labels, scale = labels.contiguous(), row_scale(reduction, n_rows)
    with on_device(student):
        if n_rows and n_columns > ONE_BLOCK:
            n_parts = triton.cdiv(n_columns + (PIECE.value if ends else 0), PART)
            statistics = losses.new_empty(7, n_rows, n_parts)
            bests = torch.empty(n_rows, n_parts, dtype=torch.int32, device=student.device)
            dual_loss_sums[(n_rows * n_parts,)](
                student, teacher, labels, offset, statistics, bests, n_rows, sizes[0], n_parts, *sizes[1:],
                int(soft_ce), temperature, BLOCK=PART, **how, num_warps=8,
            )  # fmt: skip
            dual_loss_cotangents[(1 + n_rows * n_parts,)](
                student, teacher, labels, offset, task_weight, general_weight, statistics, bests,
                losses, cotangents, correct, n_rows, sizes[0], n_parts, *sizes[1:], int(soft_ce), reduction,
                temperature, scale, BLOCK=PART, **how,
                PARTS=triton.next_power_of_2(n_parts), ROWS=PART_ROWS, num_warps=8,
            )  # fmt: skip
            return
        alone = n_rows == 1  # its own mean, and its own count
        row_losses = losses if reduction == 0 or alone else losses.new_empty(2, n_rows)
        hits = correct if alone else torch.empty(n_rows, dtype=torch.int64, device=student.device)
        if n_rows:
            block = max(128, triton.next_power_of_2(n_columns))
            dual_loss_rows[(n_rows,)](
                student, teacher, labels, offset, task_weight, general_weight, row_losses, cotangents, hits,
                n_rows, *sizes, int(soft_ce), temperature, scale, BLOCK=block, **how, num_warps=max(1, block // 512),
            )  # fmt: skip
        if not alone:
            reduce(row_losses, hits, losses, correct, reduction)


OPERATORS = (dual_loss_out,)
