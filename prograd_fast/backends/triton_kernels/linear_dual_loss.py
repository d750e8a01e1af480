"""Dual loss from features: both logit matrices are computed tile by tile, twice, and never stored.

1. `statistics`: programs over row blocks x spans of classes keep online softmax statistics of each row.
2. `combine_spans`: the statistics of the spans, merged in their order, give row losses and normalisers.
3. `class_cotangents`: programs over class blocks x feature blocks compute the tiles again and multiply their cotangents
   by the features. A program owns what it writes, so nothing is added by atomics.

Without a teacher (None) the student is its own: nothing is multiplied for it, and only the task's cotangents come out.

The extra memory is a few numbers per row and span: for B rows O(B · SPANS), for the logits it would be O(B · C).
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

import torch
import triton
import triton.language as tl
from torch import Tensor

from prograd_fast.backends.triton_kernels.dual_loss import reduce
from prograd_fast.backends.triton_kernels.launch import contiguous, into_contiguous, on_device, product_precision
from prograd_fast.backends.triton_kernels.sums import exp_anchor, row_scale

INNER_BLOCK, FEATURE_BLOCK = 32, 64
CLASS_BLOCKS = {"tf32": 64}  # of 16-bit features; the three products of float32 spill their registers above 32
SPANS = 64  # at most; enough programs to fill a GPU where there are few rows
N_STATISTICS = tl.constexpr(6)
N_NORMALISERS = tl.constexpr(5)


@triton.jit
def _tile(
    features, student, teacher, offset, rows, columns, n_rows, n_columns, n_features, scale, acc: tl.constexpr,
    PRECISION: tl.constexpr, ROWS: tl.constexpr, CLASSES: tl.constexpr, INNER: tl.constexpr,
):  # fmt: skip
    """Student and offset teacher logits of a block of rows and classes, -inf beyond the last class."""
    b_z = tl.zeros([ROWS, CLASSES], acc)
    b_t = tl.zeros([ROWS, CLASSES], acc)
    o_rows = rows.to(tl.int64)[:, None] * n_features
    o_columns = columns.to(tl.int64)[None, :] * n_features
    for k in range(0, n_features, INNER):
        inner = k + tl.arange(0, INNER)
        inside_x = (rows < n_rows)[:, None] & (inner < n_features)[None, :]
        inside_w = (columns < n_columns)[None, :] & (inner < n_features)[:, None]
        x = tl.load(features + o_rows + inner[None, :], mask=inside_x, other=0.0).to(acc)
        w = tl.load(student + o_columns + inner[:, None], mask=inside_w, other=0.0).to(acc)
        b_z = tl.dot(x, w, b_z, input_precision=PRECISION, out_dtype=acc)
        if teacher is not None:
            w = tl.load(teacher + o_columns + inner[:, None], mask=inside_w, other=0.0).to(acc)
            b_t = tl.dot(x, w, b_t, input_precision=PRECISION, out_dtype=acc)
    if teacher is None:
        b_t = b_z
    inside = (columns < n_columns)[None, :]
    b_t *= scale
    if offset is not None:
        b_t += tl.load(offset + columns, mask=columns < n_columns, other=0.0).to(acc)[None, :]
    return tl.where(inside, b_z * scale, float("-inf")), tl.where(inside, b_t, float("-inf"))


@triton.jit
def _merge(
    top_z, sum_z, sum_zt, top_t, sum_t, cross, best,
    other_top_z, other_sum_z, other_sum_zt, other_top_t, other_sum_t, other_cross, other_best, inverse_t, entropy,
):  # fmt: skip
    """Statistics of two sets of classes together; the second set holds higher classes.

    With m the maxima: sum_z = Σ exp(z - m_z), sum_zt = Σ exp((z - m_z)/T), sum_t = Σ w with w = exp((t - m_t)/T), and
    cross = Σ w · (entropy · (t - m_t) - (z - m_z)) / T.
    """
    max_z, max_t = exp_anchor(tl.maximum(top_z, other_top_z)), exp_anchor(tl.maximum(top_t, other_top_t))
    cross -= sum_t * (entropy * (max_t - exp_anchor(top_t)) - (max_z - exp_anchor(top_z))) * inverse_t
    other_cross -= (
        other_sum_t * (entropy * (max_t - exp_anchor(other_top_t)) - (max_z - exp_anchor(other_top_z))) * inverse_t
    )
    # exp(-inf) = 0 drops what has seen no class yet
    keep, other_keep = tl.exp((top_t - max_t) * inverse_t), tl.exp((other_top_t - max_t) * inverse_t)
    return (
        tl.maximum(top_z, other_top_z),
        sum_z * tl.exp(top_z - max_z) + other_sum_z * tl.exp(other_top_z - max_z),
        sum_zt * tl.exp((top_z - max_z) * inverse_t) + other_sum_zt * tl.exp((other_top_z - max_z) * inverse_t),
        tl.maximum(top_t, other_top_t),
        sum_t * keep + other_sum_t * other_keep,
        cross * keep + other_cross * other_keep,
        tl.where(other_top_z > top_z, other_best, best),  # ties: the lower class stays
    )


@triton.jit(do_not_specialize=["n_rows", "n_columns", "n_vectors", "span", "soft_ce"])
def statistics(
    features, student, teacher, labels, offset, spans, bests, label_logits,
    n_rows, n_columns, n_vectors, span, soft_ce, scale: tl.float64, temperature: tl.float64,
    VECTOR: tl.constexpr, PRECISION: tl.constexpr, ROWS: tl.constexpr, CLASSES: tl.constexpr, INNER: tl.constexpr,
):  # fmt: skip
    """Online statistics of a block of rows over one span of classes, (span, statistic, row) in `spans`."""
    acc: tl.constexpr = spans.dtype.element_ty
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = rows < n_rows
    begin = tl.program_id(1) * span
    end = tl.minimum(begin + span, n_columns)
    label = tl.load(labels + rows, mask=inside, other=-1).to(tl.int64)
    inverse_t = tl.full([], 1.0 / temperature, acc)
    entropy = (soft_ce == 0).to(acc)  # of the teacher: part of the KL divergence, not of the soft cross-entropy

    top_z = tl.full([ROWS], float("-inf"), acc)
    top_t = tl.full([ROWS], float("-inf"), acc)
    sum_z, sum_zt, sum_t = tl.zeros([ROWS], acc), tl.zeros([ROWS], acc), tl.zeros([ROWS], acc)
    cross, label_logit = tl.zeros([ROWS], acc), tl.zeros([ROWS], acc)
    best = tl.full([ROWS], 0, tl.int32)
    for start in range(begin, end, CLASSES):
        columns = start + tl.arange(0, CLASSES)
        z, t = _tile(
            features, student, teacher, offset, rows, columns, n_rows, n_columns, n_vectors * VECTOR,
            tl.full([], scale, acc), acc, PRECISION, ROWS, CLASSES, INNER,
        )  # fmt: skip
        tile_top_z, tile_top_t = tl.max(z, axis=1), tl.max(t, axis=1)
        from_z, from_t = z - exp_anchor(tile_top_z)[:, None], t - exp_anchor(tile_top_t)[:, None]
        w = tl.exp(from_t * inverse_t)
        tile_cross = tl.where(w > 0, w * (tl.where(entropy > 0, from_t, 0.0) - from_z) * inverse_t, 0.0)
        tile_best = tl.min(tl.where(z == tile_top_z[:, None], columns[None, :], n_columns), axis=1)
        label_logit += tl.sum(tl.where(columns[None, :] == label[:, None], z, 0.0), axis=1)
        top_z, sum_z, sum_zt, top_t, sum_t, cross, best = _merge(
            top_z, sum_z, sum_zt, top_t, sum_t, cross, best,
            tile_top_z, tl.sum(tl.exp(from_z), axis=1), tl.sum(tl.exp(from_z * inverse_t), axis=1),
            tile_top_t, tl.sum(w, axis=1), tl.sum(tile_cross, axis=1), tile_best, inverse_t, entropy,
        )  # fmt: skip
    out = spans + tl.program_id(1) * N_STATISTICS * n_rows + rows
    tl.store(out, top_z, mask=inside)
    tl.store(out + n_rows, sum_z, mask=inside)
    tl.store(out + 2 * n_rows, sum_zt, mask=inside)
    tl.store(out + 3 * n_rows, top_t, mask=inside)
    tl.store(out + 4 * n_rows, sum_t, mask=inside)
    tl.store(out + 5 * n_rows, cross, mask=inside)
    tl.store(bests + tl.program_id(1) * n_rows + rows, best, mask=inside)
    tl.store(label_logits + rows, label_logit, mask=inside & (label >= begin) & (label < end))


@triton.jit(do_not_specialize=["n_rows", "n_columns", "n_spans", "soft_ce"])
def combine_spans(
    spans, bests, label_logits, labels, task_weight, general_weight, losses, hits, normalisers,
    n_rows, n_columns, n_spans, soft_ce, temperature: tl.float64, ROWS: tl.constexpr,
):  # fmt: skip
    """Row losses (not yet scaled), hits, and (normaliser, row): max z, log sum_z, log sum_zt, max t, log sum_t."""
    acc: tl.constexpr = losses.dtype.element_ty
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = rows < n_rows
    inverse_t = tl.full([], 1.0 / temperature, acc)
    entropy = (soft_ce == 0).to(acc)
    top_z = tl.full([ROWS], float("-inf"), acc)
    top_t = tl.full([ROWS], float("-inf"), acc)
    sum_z, sum_zt, sum_t = tl.zeros([ROWS], acc), tl.zeros([ROWS], acc), tl.zeros([ROWS], acc)
    cross = tl.zeros([ROWS], acc)
    best = tl.full([ROWS], 0, tl.int32)
    for s in range(0, n_spans):
        at = spans + s * N_STATISTICS * n_rows + rows
        top_z, sum_z, sum_zt, top_t, sum_t, cross, best = _merge(
            top_z, sum_z, sum_zt, top_t, sum_t, cross, best,
            tl.load(at, mask=inside, other=0.0).to(acc),
            tl.load(at + n_rows, mask=inside, other=1.0).to(acc),
            tl.load(at + 2 * n_rows, mask=inside, other=1.0).to(acc),
            tl.load(at + 3 * n_rows, mask=inside, other=0.0).to(acc),
            tl.load(at + 4 * n_rows, mask=inside, other=1.0).to(acc),
            tl.load(at + 5 * n_rows, mask=inside, other=0.0).to(acc),
            tl.load(bests + s * n_rows + rows, mask=inside, other=0).to(tl.int32),
            inverse_t, entropy,
        )  # fmt: skip
    max_z, max_t = exp_anchor(top_z), exp_anchor(top_t)
    label = tl.load(labels + rows, mask=inside, other=0).to(tl.int64)
    # a label out of range makes the loss NaN: nobody wrote its logit
    label_logit = tl.load(label_logits + rows, mask=inside, other=0.0).to(acc)
    label_logit = tl.where((label >= 0) & (label < n_columns), label_logit, float("nan"))
    task = tl.log(sum_z) - (label_logit - max_z)
    general = cross / sum_t - entropy * tl.log(sum_t) + tl.log(sum_zt)
    general *= tl.full([], temperature * temperature, acc)
    if task_weight is not None:
        task *= tl.load(task_weight + rows, mask=inside, other=0.0).to(acc)
    if general_weight is not None:
        general *= tl.load(general_weight + rows, mask=inside, other=0.0).to(acc)
    tl.store(losses + rows, task, mask=inside)
    tl.store(losses + n_rows + rows, general, mask=inside)
    tl.store(hits + rows, (best == label).to(tl.int32), mask=inside)
    tl.store(normalisers + rows, max_z, mask=inside)
    tl.store(normalisers + n_rows + rows, tl.log(sum_z), mask=inside)
    tl.store(normalisers + 2 * n_rows + rows, tl.log(sum_zt), mask=inside)
    tl.store(normalisers + 3 * n_rows + rows, max_t, mask=inside)
    tl.store(normalisers + 4 * n_rows + rows, tl.log(sum_t), mask=inside)


@triton.jit(do_not_specialize=["n_rows", "n_columns", "n_vectors"])
def class_cotangents(
    features, student, teacher, labels, offset, task_weight, general_weight, normalisers, cotangents,
    n_rows, n_columns, n_vectors, scale: tl.float64, temperature: tl.float64, row_factor: tl.float64,
    VECTOR: tl.constexpr, PRECISION: tl.constexpr, ROWS: tl.constexpr, CLASSES: tl.constexpr, INNER: tl.constexpr,
    FEATURES: tl.constexpr,
):  # fmt: skip
    """Both cotangents of a block of classes and features: scale · Σ over rows of (logit cotangent) · (features)."""
    acc: tl.constexpr = normalisers.dtype.element_ty
    n_features = n_vectors * VECTOR
    columns = tl.program_id(0) * CLASSES + tl.arange(0, CLASSES)
    block = tl.program_id(1) * FEATURES + tl.arange(0, FEATURES)
    inverse_t = tl.full([], 1.0 / temperature, acc)
    b_scale = tl.full([], scale, acc)
    b_task = tl.zeros([CLASSES, FEATURES], acc)
    b_general = tl.zeros([CLASSES, FEATURES], acc)
    for start in range(0, n_rows, ROWS):
        rows = start + tl.arange(0, ROWS)
        inside = rows < n_rows
        z, t = _tile(
            features, student, teacher, offset, rows, columns, n_rows, n_columns, n_features, b_scale, acc,
            PRECISION, ROWS, CLASSES, INNER,
        )  # fmt: skip
        label = tl.load(labels + rows, mask=inside, other=-1).to(tl.int64)
        # rows beyond the last have infinite normalisers, hence p = q = 0
        max_z = tl.load(normalisers + rows, mask=inside, other=float("inf")).to(acc)[:, None]
        log_sum_z = tl.load(normalisers + n_rows + rows, mask=inside, other=0.0).to(acc)[:, None]
        log_sum_zt = tl.load(normalisers + 2 * n_rows + rows, mask=inside, other=0.0).to(acc)[:, None]
        max_t = tl.load(normalisers + 3 * n_rows + rows, mask=inside, other=float("inf")).to(acc)[:, None]
        log_sum_t = tl.load(normalisers + 4 * n_rows + rows, mask=inside, other=0.0).to(acc)[:, None]
        task = tl.exp(z - max_z - log_sum_z) - tl.where(columns[None, :] == label[:, None], 1.0, 0.0)
        general = tl.exp((z - max_z) * inverse_t - log_sum_zt) - tl.exp((t - max_t) * inverse_t - log_sum_t)
        if task_weight is not None:
            task *= tl.load(task_weight + rows, mask=inside, other=0.0).to(acc)[:, None]
        if general_weight is not None:
            general *= tl.load(general_weight + rows, mask=inside, other=0.0).to(acc)[:, None]
        inside_x = inside[:, None] & (block < n_features)[None, :]
        o_x = rows.to(tl.int64)[:, None] * n_features + block[None, :]
        x = tl.load(features + o_x, mask=inside_x, other=0.0).to(acc)
        b_task = tl.dot(tl.trans(task), x, b_task, input_precision=PRECISION, out_dtype=acc)
        if teacher is not None:
            b_general = tl.dot(tl.trans(general), x, b_general, input_precision=PRECISION, out_dtype=acc)
    inside_w = (columns < n_columns)[:, None] & (block < n_features)[None, :]
    out = cotangents + columns.to(tl.int64)[:, None] * n_features + block[None, :]
    dtype: tl.constexpr = cotangents.dtype.element_ty
    tl.store(out, (b_task * tl.full([], scale * row_factor, acc)).to(dtype), mask=inside_w)
    if teacher is not None:
        out += n_columns.to(tl.int64) * n_features
        tl.store(out, (b_general * tl.full([], scale * row_factor * temperature, acc)).to(dtype), mask=inside_w)


@into_contiguous
def linear_dual_loss_out(
    features: Tensor,
    student_classes: Tensor,
    teacher_classes: Tensor | None,
    labels: Tensor,
    teacher_offset: Tensor | None,
    task_weight: Tensor | None,
    general_weight: Tensor | None,
    scale: float,
    temperature: float,
    soft_ce: bool,
    reduction: int,
    *,
    losses: Tensor,
    cotangents: Tensor,
    correct: Tensor,
) -> None:
    """The operator `linear_dual_loss_out` on Triton: four launches, and no value read back.

    The operator always has a teacher; `linear_cross_entropy_out` calls it without.
    """
    (n_rows, n_features), n_columns = features.shape, student_classes.shape[0]
    labels, offset, task_weight, general_weight = contiguous([labels, teacher_offset, task_weight, general_weight])
    inputs = (*contiguous([features, student_classes, teacher_classes]), labels, offset)
    precision = product_precision(features.dtype)
    row_block = min(64, max(16, triton.next_power_of_2(n_rows)))
    class_block = CLASS_BLOCKS.get(precision, 32)
    span = class_block * triton.cdiv(triton.cdiv(n_columns, class_block), SPANS)
    n_spans = triton.cdiv(n_columns, span)
    vector = 8 if n_features % 8 == 0 else 1
    row_losses = losses if reduction == 0 else losses.new_empty(2, n_rows)
    spans = losses.new_empty(n_spans, N_STATISTICS.value, n_rows)
    bests = torch.empty(n_spans, n_rows, dtype=torch.int32, device=features.device)
    label_logits = losses.new_empty(n_rows)
    normalisers = losses.new_empty(N_NORMALISERS.value, n_rows)
    hits = torch.empty(n_rows, dtype=torch.int32, device=features.device)
    tiles = {
        "VECTOR": vector, "PRECISION": precision, "ROWS": row_block, "CLASSES": class_block, "INNER": INNER_BLOCK,
    }  # fmt: skip
    with on_device(features):
        if n_rows:
            statistics[(triton.cdiv(n_rows, row_block), n_spans)](
                *inputs, spans, bests, label_logits,
                n_rows, n_columns, n_features // vector, span, int(soft_ce), scale, temperature, **tiles, num_warps=8,
            )  # fmt: skip
            combine_spans[(triton.cdiv(n_rows, 128),)](
                spans, bests, label_logits, labels, task_weight, general_weight, row_losses, hits, normalisers,
                n_rows, n_columns, n_spans, int(soft_ce), temperature, ROWS=128, num_warps=4,
            )  # fmt: skip
        class_cotangents[(triton.cdiv(n_columns, class_block), triton.cdiv(n_features, FEATURE_BLOCK))](
            *inputs, task_weight, general_weight, normalisers, cotangents,
            n_rows, n_columns, n_features // vector,
            scale, temperature, row_scale(reduction, n_rows) if n_rows else 0.0,
            **tiles, FEATURES=FEATURE_BLOCK, num_warps=8,
        )  # fmt: skip
        reduce(row_losses, hits, losses, correct, reduction)


@into_contiguous
def linear_cross_entropy_out(
    features: Tensor, classes: Tensor, labels: Tensor, scale: float, *, loss: Tensor, cotangents: Tensor
) -> None:
    """The operator `linear_cross_entropy_out` on Triton."""
    losses = loss.new_empty(2)
    linear_dual_loss_out(
        features, classes, None, labels, None, None, None, scale, 1.0, False, 1,
        losses=losses, cotangents=cotangents, correct=torch.empty((), dtype=torch.int64, device=loss.device),
    )  # fmt: skip
    loss.copy_(losses[0])


OPERATORS = (linear_dual_loss_out, linear_cross_entropy_out)
