"""GELU and its backward pass, which reads the activations once for all K cotangents."""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

import triton
import triton.language as tl
from torch import Tensor

from prograd_fast.backends.triton_kernels.launch import on_device

BLOCK = 2048  # 16 elements for each of 128 threads
NONE, TANH = tl.constexpr(0), tl.constexpr(1)  # kinds of approximation; 2 is the sigmoid


@triton.jit
def _sigmoid(w):
    """The sigmoid and its derivative; nothing overflows and nothing cancels."""
    e = tl.exp(-tl.abs(w))
    quotient = 1.0 / (1.0 + e)
    return tl.where(w < 0, e * quotient, quotient), e * quotient * quotient


@triton.jit
def gelu_gate(x, KIND: tl.constexpr):
    """The factor of x, Φ(x) or an approximation of it, and its derivative."""
    if KIND == NONE:
        return 0.5 + 0.5 * tl.math.erf(x * 0.7071067811865476), tl.exp(-0.5 * x * x) * 0.3989422804014327
    elif KIND == TANH:
        # (1 + tanh w)/2 = σ(2w). Beyond 32 the gate is 0 or 1; x³ must not overflow, and NaN stays one
        u = tl.where(x < -32, -32.0, tl.where(x > 32, 32.0, x))
        gate, slope = _sigmoid(1.5957691216057308 * (u + 0.044715 * u * u * u))
        return gate, slope * 1.5957691216057308 * (1.0 + 3 * 0.044715 * u * u)
    else:
        gate, slope = _sigmoid(1.702 * x)
        return gate, slope * 1.702


@triton.jit
def _block_of(n, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    return at, at < n


@triton.jit
def gelu(x, out, n, KIND: tl.constexpr, BLOCK: tl.constexpr):
    """A block of x·gate(x)."""
    acc: tl.constexpr = tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32
    at, inside = _block_of(n, BLOCK)
    b_x = tl.load(x + at, mask=inside, other=0.0).to(acc)
    gate, _slope = gelu_gate(b_x, KIND)
    tl.store(out + at, (b_x * gate).to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["n_cotangents"])
def gelu_backward(gradient, x, n, n_cotangents, KIND: tl.constexpr, BLOCK: tl.constexpr):
    """A block of all gradients times gelu'(x)."""
    acc: tl.constexpr = tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32
    at, inside = _block_of(n, BLOCK)
    b_x = tl.load(x + at, mask=inside, other=0.0).to(acc)
    gate, slope = gelu_gate(b_x, KIND)
    derivative = gate + b_x * slope
    for _ in range(0, n_cotangents):
        product = tl.load(gradient + at, mask=inside, other=0.0).to(acc) * derivative
        tl.store(gradient + at, product.to(gradient.dtype.element_ty), mask=inside)
        at += n


def gelu_out(x: Tensor, approximate: int, *, out: Tensor) -> None:
    """The operator `gelu_out` on Triton, one launch."""
    if x.numel():
        with on_device(x):
            gelu[(triton.cdiv(x.numel(), BLOCK),)](x, out, x.numel(), KIND=approximate, BLOCK=BLOCK, num_warps=4)


def gelu_backward_(gradient: Tensor, x: Tensor, approximate: int) -> None:
    """The operator `gelu_backward_` on Triton, one launch."""
    if x.numel():
        with on_device(x):
            gelu_backward[(triton.cdiv(x.numel(), BLOCK),)](
                gradient, x, x.numel(), gradient.shape[0], KIND=approximate, BLOCK=BLOCK, num_warps=4
            )


OPERATORS = (gelu_out, gelu_backward_)
