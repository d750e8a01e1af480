"""The normalised focal loss: programs for parts of each picture sum its weights, then make losses and cotangents."""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from prograd_fast.backends.triton_kernels.launch import into_contiguous, on_device

BLOCK = 2048  # pixels of a program


@triton.jit
def label_probability(z):
    """The probability of the label that z is towards, and 1 minus it; neither loses digits to the other."""
    e = tl.exp(-tl.abs(z))
    large = 1.0 / (1.0 + e)
    small = e * large
    return tl.where(z > 0, large, small), tl.where(z > 0, small, large)


@triton.jit
def focal_power(q, gamma, EXPONENT: tl.constexpr):
    """The power of q; EXPONENT 0 is any."""
    if EXPONENT == 2:
        return q * q
    if EXPONENT == 1:
        return q
    return tl.exp(gamma * tl.log(q))


@triton.jit
def pixels_of(logits, labels, n_pixels, n_parts, acc: tl.constexpr, BLOCK: tl.constexpr):
    """Of a program: its pixels, z towards the label of each (NaN of one that there is not), its sign, which count."""
    program = tl.program_id(0).to(tl.int64)
    picture, part = program // n_parts, program % n_parts
    pixels = part * BLOCK + tl.arange(0, BLOCK)
    inside = pixels < n_pixels
    pixels += picture * n_pixels
    z = tl.load(logits + pixels, mask=inside, other=0.0).to(acc)
    label = tl.load(labels + pixels, mask=inside, other=-1).to(tl.int64)
    z = tl.where((label == 0) | (label == 1), z, float("nan"))
    sign = tl.where(label == 1, 1.0, -1.0).to(acc)
    return pixels, inside, sign * z, sign, label != -1


@triton.jit(do_not_specialize=["n_vectors", "n_parts"])
def focal_weights(
    logits, labels, sums, n_vectors, n_parts, gamma: tl.float64,
    EXPONENT: tl.constexpr, VECTOR: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Sum of the weights of a part of a picture, and how many of its pixels count."""
    acc: tl.constexpr = sums.dtype.element_ty
    _, _, z, _, counts = pixels_of(logits, labels, n_vectors.to(tl.int64) * VECTOR, n_parts, acc, BLOCK)
    _, q = label_probability(z)
    weight = tl.where(counts, focal_power(q, tl.full([], gamma, acc), EXPONENT), 0.0)
    program = tl.program_id(0).to(tl.int64)
    tl.store(sums + 2 * program, tl.sum(weight, axis=0))
    tl.store(sums + 2 * program + 1, tl.sum(tl.where(counts, 1.0, 0.0).to(acc), axis=0))


@triton.jit(do_not_specialize=["n_vectors", "n_parts"])
def focal_cotangents(
    logits, labels, sums, parts, cotangents, n_vectors, n_parts,
    alpha: tl.float64, gamma: tl.float64, most: tl.float64, eps: tl.float64,
    EXPONENT: tl.constexpr, VECTOR: tl.constexpr, BLOCK: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """Cotangents of a part of a picture, and its part of the loss."""
    acc: tl.constexpr = parts.dtype.element_ty
    program = tl.program_id(0).to(tl.int64)
    first = program // n_parts * n_parts
    total, count = tl.zeros([PARTS], tl.float64), tl.zeros([PARTS], tl.float64)
    for start in range(0, n_parts, PARTS):
        part = start + tl.arange(0, PARTS)
        total += tl.load(sums + 2 * (first + part), mask=part < n_parts, other=0.0).to(tl.float64)
        count += tl.load(sums + 2 * (first + part) + 1, mask=part < n_parts, other=0.0).to(tl.float64)
    n = tl.sum(count, axis=0)
    scale = (n / (tl.sum(total, axis=0) + eps)).to(acc)
    share = (1.0 / tl.maximum(n, 1.0)).to(acc)
    b_alpha, b_gamma, b_most, b_eps = (
        tl.full([], alpha, acc), tl.full([], gamma, acc), tl.full([], most, acc), tl.full([], eps, acc)
    )  # fmt: skip
    pixels, inside, z, sign, counts = pixels_of(logits, labels, n_vectors.to(tl.int64) * VECTOR, n_parts, acc, BLOCK)
    p, q = label_probability(z)
    reciprocal = 1.0 / (p + b_eps)
    # near 1 by x = q - eps, as in csrc/formulas/normalised_focal.h
    x = tl.maximum(q - b_eps, 0.0)
    u = 1.0 - x
    near = q < 0.5
    logarithm = tl.log(tl.where(near, u, p + b_eps))
    log_p = tl.where(near, logarithm - ((u - 1.0) + x) * reciprocal, logarithm)
    weight = scale * focal_power(q, b_gamma, EXPONENT)
    cut = weight >= b_most
    factor = tl.where(sign > 0, b_alpha, 1.0 - b_alpha) * tl.where(cut, b_most, weight)
    slope = tl.where(q > b_eps, p * q * reciprocal, 0.0) + tl.where(cut, 0.0, -b_gamma * p) * log_p
    tl.store(parts + program, tl.sum(tl.where(counts, -factor * log_p, 0.0), axis=0) * share)
    value = tl.where(counts, -sign * factor * slope * share, 0.0)
    tl.store(cotangents + pixels, value.to(cotangents.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["n_parts"])
def focal_losses(parts, losses, n_parts, PARTS: tl.constexpr):
    """The loss of a picture."""
    acc: tl.constexpr = parts.dtype.element_ty
    picture = tl.program_id(0).to(tl.int64)
    total = tl.zeros([PARTS], acc)
    for start in range(0, n_parts, PARTS):
        part = start + tl.arange(0, PARTS)
        total += tl.load(parts + picture * n_parts + part, mask=part < n_parts, other=0.0).to(acc)
    tl.store(losses + picture, tl.sum(total, axis=0).to(losses.dtype.element_ty))


@into_contiguous
def normalised_focal_loss_out(
    logits: Tensor,
    labels: Tensor,
    alpha: float,
    gamma: float,
    max_mult: float,
    eps: float,
    *,
    losses: Tensor,
    cotangents: Tensor,
) -> None:
    """The operator `normalised_focal_loss_out` on Triton: three launches, and no value read back."""
    logits, labels = logits.contiguous(), labels.contiguous()
    n_pictures, n_pixels = logits.shape
    if not n_pictures:
        return
    vector, n_parts = math.gcd(8, n_pixels), max(1, triton.cdiv(n_pixels, BLOCK))
    accumulation = torch.promote_types(logits.dtype, torch.float32)
    sums, parts = (logits.new_empty(n_pictures, n_parts, n, dtype=accumulation) for n in (2, 1))
    most = max_mult if max_mult > 0 else math.inf
    sizes = {"EXPONENT": int(gamma) if gamma in (1, 2) else 0, "VECTOR": vector, "BLOCK": BLOCK}
    programs, n_vectors = (n_pictures * n_parts,), n_pixels // vector
    summed = min(1024, triton.next_power_of_2(n_parts))
    with on_device(logits):
        focal_weights[programs](logits, labels, sums, n_vectors, n_parts, gamma, **sizes, num_warps=8)
        focal_cotangents[programs](
            logits, labels, sums, parts, cotangents, n_vectors, n_parts, alpha, gamma, most, eps,
            **sizes, PARTS=summed, num_warps=8,
        )  # fmt: skip
        focal_losses[(n_pictures,)](parts, losses, n_parts, PARTS=summed)


OPERATORS = (normalised_focal_loss_out,)
