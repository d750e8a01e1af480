"""Dual loss over logits: one program for each row, then one small launch that adds the rows up in a fixed order."""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from prograd_fast.backends.triton_kernels.launch import contiguous, into_contiguous, on_device
from prograd_fast.backends.triton_kernels.sums import exp_anchor, row_scale

ONE_BLOCK = 8192  # the longest row that is kept in registers: 16 logits of each kind for each of 512 threads
LONG_BLOCK = 2048  # longer rows go by in blocks of this many classes, 8 for each of 256 threads
ROWS_BLOCK = 1024


@triton.jit
def _logits(student, teacher, offset, columns, n_columns, acc: tl.constexpr):
    """A block of a row: student and offset teacher logits, -inf beyond the last class."""
    inside = columns < n_columns
    z = tl.load(student + columns, mask=inside, other=float("-inf")).to(acc)
    t = tl.load(teacher + columns, mask=inside, other=float("-inf")).to(acc)
    if offset is not None:
        t += tl.load(offset + columns, mask=inside, other=0.0).to(acc)
    return z, t


@triton.jit
def _cotangents(
    z, t, columns, n_columns, label, max_z, sum_z, max_zt, sum_zt, max_t, sum_t, inverse_t, soft_ce,
    task_factor, general_factor, task_out, general_out, acc: tl.constexpr,
):  # fmt: skip
    """Store a block of both cotangents; return its part of the general loss, without T²."""
    inside = columns < n_columns
    task = tl.exp(z - max_z) / sum_z - tl.where(columns == label, 1.0, 0.0)
    log_p = (z - max_zt) * inverse_t - tl.log(sum_zt)
    log_q = (t - max_t) * inverse_t - tl.log(sum_t)
    q = tl.exp(log_q)
    general = tl.exp(log_p) - q
    tl.store(task_out + columns, (task * task_factor).to(task_out.dtype.element_ty), mask=inside)
    tl.store(general_out + columns, (general * general_factor).to(general_out.dtype.element_ty), mask=inside)
    # a class that the teacher excludes adds nothing: 0 · log 0 = 0
    pointwise = tl.where(soft_ce != 0, 0.0, log_q) - log_p
    return tl.sum(tl.where(q > 0, q * pointwise, 0.0).to(acc), axis=0)


@triton.jit(do_not_specialize=["n_rows", "n_vectors", "student_stride", "teacher_stride", "soft_ce"])
def dual_loss_rows(
    student, teacher, labels, offset, task_weight, general_weight, losses, cotangents, hits,
    n_rows, n_vectors, student_stride, teacher_stride, soft_ce, temperature: tl.float64, scale: tl.float64,
    VECTOR: tl.constexpr, BLOCK: tl.constexpr, ONE_BLOCK: tl.constexpr,
):  # fmt: skip
    """Row losses (not yet scaled), both cotangents, and whether the row's argmax is its label.

    Sizes and strides count vectors of VECTOR elements, which tells the compiler how the rows are aligned.
    """
    acc: tl.constexpr = losses.dtype.element_ty
    row = tl.program_id(0).to(tl.int64)
    n_columns = n_vectors * VECTOR
    student += row * student_stride * VECTOR
    teacher += row * teacher_stride * VECTOR
    task_out = cotangents + row * n_columns
    general_out = task_out + n_rows.to(tl.int64) * n_columns
    label = tl.load(labels + row).to(tl.int64)
    inverse_t = tl.full([], 1.0 / temperature, acc)
    o_block = tl.arange(0, BLOCK)

    # statistics: maximum, sum of exp and first argmax; T > 0 does not move the maximum
    if ONE_BLOCK:
        z, t = _logits(student, teacher, offset, o_block, n_columns, acc)
        max_z, max_t = exp_anchor(tl.max(z, axis=0)), exp_anchor(tl.max(t, axis=0))
        sum_z = tl.sum(tl.exp(z - max_z), axis=0)
        sum_zt = tl.sum(tl.exp((z - max_z) * inverse_t), axis=0)
        sum_t = tl.sum(tl.exp((t - max_t) * inverse_t), axis=0)
        best = tl.min(tl.where(z == max_z, o_block, n_columns), axis=0)
    else:
        top_z = tl.full([], float("-inf"), acc)
        top_t = tl.full([], float("-inf"), acc)
        b_sum_z = tl.zeros([BLOCK], acc)
        b_sum_zt = tl.zeros([BLOCK], acc)
        b_sum_t = tl.zeros([BLOCK], acc)
        best = n_columns
        for start in range(0, n_columns, BLOCK):
            columns = start + o_block
            z, t = _logits(student, teacher, offset, columns, n_columns, acc)
            block_top = tl.max(z, axis=0)
            first = tl.min(tl.where(z == block_top, columns, n_columns), axis=0)
            best = tl.where(block_top > top_z, first, best)  # ties: the lower class stays
            new_z, new_t = tl.maximum(top_z, block_top), tl.maximum(top_t, tl.max(t, axis=0))
            max_z, max_t = exp_anchor(new_z), exp_anchor(new_t)
            b_sum_z = b_sum_z * tl.exp(top_z - max_z) + tl.exp(z - max_z)
            b_sum_zt = b_sum_zt * tl.exp((top_z - max_z) * inverse_t) + tl.exp((z - max_z) * inverse_t)
            b_sum_t = b_sum_t * tl.exp((top_t - max_t) * inverse_t) + tl.exp((t - max_t) * inverse_t)
            top_z, top_t = new_z, new_t
        max_z, max_t = exp_anchor(top_z), exp_anchor(top_t)
        sum_z, sum_zt, sum_t = tl.sum(b_sum_z, axis=0), tl.sum(b_sum_zt, axis=0), tl.sum(b_sum_t, axis=0)

    task_weight_row = tl.full([], 1.0, acc)
    general_weight_row = tl.full([], 1.0, acc)
    if task_weight is not None:
        task_weight_row = tl.load(task_weight + row).to(acc)
    if general_weight is not None:
        general_weight_row = tl.load(general_weight + row).to(acc)
    t2 = tl.full([], temperature * temperature, acc)
    task_factor = task_weight_row * tl.full([], scale, acc)
    general_factor = general_weight_row * tl.full([], scale * temperature, acc)  # T², and 1/T of the softmax

    # cotangents, and the general loss against the final statistics, which loses no digits to a running maximum
    if ONE_BLOCK:
        general = _cotangents(
            z, t, o_block, n_columns, label, max_z, sum_z, max_z, sum_zt, max_t, sum_t, inverse_t, soft_ce,
            task_factor, general_factor, task_out, general_out, acc,
        )  # fmt: skip
    else:
        general = tl.zeros([], acc)
        for start in range(0, n_columns, BLOCK):
            columns = start + o_block
            z, t = _logits(student, teacher, offset, columns, n_columns, acc)
            general += _cotangents(
                z, t, columns, n_columns, label, max_z, sum_z, max_z, sum_zt, max_t, sum_t, inverse_t, soft_ce,
                task_factor, general_factor, task_out, general_out, acc,
            )  # fmt: skip

    # a label out of range makes the loss NaN: nothing is read from outside the row, and nobody overlooks it
    known = (label >= 0) & (label < n_columns)
    z_label = tl.load(student + label, mask=known, other=float("nan")).to(acc)
    task = tl.log(sum_z) - (z_label - max_z)
    tl.store(losses + row, task * task_weight_row)
    tl.store(losses + n_rows + row, general * t2 * general_weight_row)
    tl.store(hits + row, (best == label).to(tl.int32))


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
    """The operator `dual_loss_out` on Triton: two launches, and no value read back."""
    n_rows, n_columns = student.shape
    student = student if student.stride(1) == 1 else student.contiguous()
    teacher = teacher if teacher.stride(1) == 1 else teacher.contiguous()
    offset, task_weight, general_weight = contiguous([teacher_offset, task_weight, general_weight])
    row_losses = losses if reduction == 0 else losses.new_empty(2, n_rows)
    hits = torch.empty(n_rows, dtype=torch.int32, device=student.device)
    vector = math.gcd(8, n_columns, student.stride(0), teacher.stride(0))
    one_block = n_columns <= ONE_BLOCK
    block = max(128, triton.next_power_of_2(n_columns)) if one_block else LONG_BLOCK
    with on_device(student):
        if n_rows:
            dual_loss_rows[(n_rows,)](
                student, teacher, labels.contiguous(), offset, task_weight, general_weight,
                row_losses, cotangents, hits, n_rows, n_columns // vector,
                student.stride(0) // vector, teacher.stride(0) // vector, int(soft_ce),
                temperature, row_scale(reduction, n_rows), VECTOR=vector, BLOCK=block, ONE_BLOCK=one_block,
                num_warps=max(1, block // 512) if one_block else 8,
            )  # fmt: skip
        reduce(row_losses, hits, losses, correct, reduction)


OPERATORS = (dual_loss_out,)
