"""Losses and predictions averaged over samples: a program for each sample and row, whatever the batch.

1. `softmax_sums`: each program's maximum, sum of exp, and log-probability of its label.
2. `sampled_cotangents`: from the log-probabilities of all samples of a row, each one's share; logits again, which up to
   the size of the second-level cache come from there.
   `mean_log_probs`: a program for each row and block of classes goes over the samples.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from prograd_fast.backends.triton_kernels.launch import into_contiguous, on_device
from prograd_fast.backends.triton_kernels.sums import add_up, exp_anchor, row_scale

BLOCK = 1024  # classes that a program has at a time
MAX, SUM, AT_LABEL = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)  # what `statistics` holds, (3, samples, rows)


@triton.jit(do_not_specialize=["n_rows", "n_programs", "n_vectors"])
def softmax_sums(logits, labels, statistics, n_rows, n_programs, n_vectors, VECTOR: tl.constexpr, BLOCK: tl.constexpr):
    """Maximum, sum of exp and log-probability of the label of one sample's row."""
    acc: tl.constexpr = statistics.dtype.element_ty
    program = tl.program_id(0).to(tl.int64)
    n_columns = n_vectors * VECTOR
    z_row = logits + program * n_columns
    top = tl.full([], float("-inf"), acc)
    b_sum = tl.zeros([BLOCK], acc)
    for start in range(0, n_columns, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        z = tl.load(z_row + columns, mask=columns < n_columns, other=float("-inf")).to(acc)
        new_top = tl.maximum(top, tl.max(z, axis=0))
        anchor = exp_anchor(new_top)
        b_sum = b_sum * tl.exp(top - anchor) + tl.exp(z - anchor)
        top = new_top
    top, total = exp_anchor(top), tl.sum(b_sum, axis=0)
    tl.store(statistics + MAX * n_programs + program, top)
    tl.store(statistics + SUM * n_programs + program, total)
    if labels is not None:
        label = tl.load(labels + program % n_rows).to(tl.int64)
        inside = (label >= 0) & (label < n_columns)
        z_label = tl.load(z_row + label, mask=inside, other=float("nan")).to(acc)  # NaN, not somebody's memory
        tl.store(statistics + AT_LABEL * n_programs + program, z_label - top - tl.log(total))


@triton.jit(do_not_specialize=["n_rows", "n_samples", "n_vectors"])
def sampled_cotangents(
    logits, labels, statistics, losses, cotangents, n_rows, n_samples, n_vectors, scale: tl.float64,
    VECTOR: tl.constexpr, BLOCK: tl.constexpr, SAMPLES: tl.constexpr,
):  # fmt: skip
    """The cotangents of one sample's row and, by the first sample, the loss of the row."""
    acc: tl.constexpr = statistics.dtype.element_ty
    program = tl.program_id(0).to(tl.int64)
    sample, row = program // n_rows, program % n_rows
    n_programs, n_columns = n_samples.to(tl.int64) * n_rows, n_vectors * VECTOR
    samples = tl.arange(0, SAMPLES)
    given = samples < n_samples
    log_probs = tl.load(
        statistics + AT_LABEL * n_programs + samples.to(tl.int64) * n_rows + row, mask=given, other=float("-inf")
    ).to(acc)
    best = tl.max(log_probs, axis=0)
    # samples that all have -inf have equal shares, as the only one has the whole
    shares = tl.where(given, tl.where(log_probs == best, 1.0, tl.exp(log_probs - best)), 0.0)
    total = tl.sum(shares, axis=0)
    if sample == 0:
        tl.store(losses + row, -(best + tl.log(total / n_samples.to(acc))))
    share = tl.sum(tl.where(samples == sample, shares, 0.0), axis=0) / total * tl.full([], scale, acc)
    top = tl.load(statistics + MAX * n_programs + program).to(acc)
    factor = share / tl.load(statistics + SUM * n_programs + program).to(acc)
    label = tl.load(labels + row).to(tl.int64)
    z_row, out = logits + program * n_columns, cotangents + program * n_columns
    for start in range(0, n_columns, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        inside = columns < n_columns
        z = tl.load(z_row + columns, mask=inside, other=float("-inf")).to(acc)
        value = tl.exp(z - top) * factor - tl.where(columns == label, share, 0.0)
        tl.store(out + columns, value.to(cotangents.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["n_rows", "n_samples", "n_vectors"])
def mean_log_probs(
    logits, statistics, log_probs, n_rows, n_samples, n_vectors, VECTOR: tl.constexpr, BLOCK: tl.constexpr
):
    """Log of the mean over samples of softmax, for one row and block of classes."""
    acc: tl.constexpr = statistics.dtype.element_ty
    row = tl.program_id(0).to(tl.int64)
    n_programs, n_columns = n_samples.to(tl.int64) * n_rows, n_vectors * VECTOR
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < n_columns
    top = tl.full([BLOCK], float("-inf"), acc)
    total = tl.zeros([BLOCK], acc)
    for sample in range(0, n_samples):
        program = sample * n_rows.to(tl.int64) + row
        z = tl.load(logits + program * n_columns + columns, mask=inside, other=float("-inf")).to(acc)
        log_sum = tl.log(tl.load(statistics + SUM * n_programs + program).to(acc))
        log_p = z - tl.load(statistics + MAX * n_programs + program).to(acc) - log_sum
        new_top = tl.maximum(top, log_p)
        anchor = exp_anchor(new_top)
        total = total * tl.exp(top - anchor) + tl.exp(log_p - anchor)
        top = new_top
    mean = exp_anchor(top) + tl.log(total / n_samples.to(acc))
    tl.store(log_probs + row * n_columns + columns, mean.to(log_probs.dtype.element_ty), mask=inside)


def _sums(logits: Tensor, labels: Tensor | None, accumulation: torch.dtype) -> tuple[Tensor, dict[str, int]]:
    n_samples, n_rows, n_columns = logits.shape
    statistics = torch.empty(3, n_samples, n_rows, dtype=accumulation, device=logits.device)
    sizes = {"VECTOR": math.gcd(8, n_columns), "BLOCK": min(BLOCK, max(128, triton.next_power_of_2(n_columns)))}
    n_programs = n_samples * n_rows
    softmax_sums[(n_programs,)](
        logits, labels, statistics, n_rows, n_programs, n_columns // sizes["VECTOR"], **sizes, num_warps=4
    )
    return statistics, sizes


@into_contiguous
def sampled_cross_entropy_out(
    logits: Tensor, labels: Tensor, reduction: int, *, losses: Tensor, cotangents: Tensor
) -> None:
    """The operator `sampled_cross_entropy_out` on Triton: three launches, two without reduction; no value read back."""
    n_samples, n_rows, n_columns = logits.shape
    logits, labels = logits.contiguous(), labels.contiguous()
    row_losses = losses if reduction == 0 else losses.new_empty(n_rows)
    with on_device(logits):
        if n_rows:
            statistics, sizes = _sums(logits, labels, losses.dtype)
            sampled_cotangents[(n_samples * n_rows,)](
                logits, labels, statistics, row_losses, cotangents, n_rows, n_samples, n_columns // sizes["VECTOR"],
                row_scale(reduction, n_rows), **sizes, SAMPLES=triton.next_power_of_2(n_samples), num_warps=4,
            )  # fmt: skip
        if reduction != 0:
            add_up(row_losses, losses, row_scale(reduction, n_rows))


@into_contiguous
def sampled_log_probs_out(logits: Tensor, *, log_probs: Tensor) -> None:
    """The operator `sampled_log_probs_out` on Triton: two launches."""
    n_samples, n_rows, n_columns = logits.shape
    if n_rows == 0:
        return
    logits = logits.contiguous()
    with on_device(logits):
        statistics, sizes = _sums(logits, None, log_probs.dtype)
        mean_log_probs[(n_rows, triton.cdiv(n_columns, sizes["BLOCK"]))](
            logits, statistics, log_probs, n_rows, n_samples, n_columns // sizes["VECTOR"], **sizes, num_warps=4
        )


OPERATORS = (sampled_cross_entropy_out, sampled_log_probs_out)
