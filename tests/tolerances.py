"""Every tolerance of the test suite, in one table, each with its reason.

All are relative to the largest magnitude of the expected array: max |actual - expected| / max |expected|.
"""

import numpy as np
import torch
from torch import Tensor

TOLERANCES: dict[tuple[str, torch.dtype], float] = {
    # the projected gradient in float64 against the authors' code: a few roundings of 1e-16
    ("golden projection", torch.float64): 1e-12,
    # parameters after several steps against the authors' code: roundings of projection and model, carried along
    ("golden trajectory", torch.float64): 1e-9,
    ("golden trajectory", torch.float32): 1e-4,
    # losses and their gradients against their authors' code, some through a tiny model
    ("golden loss", torch.float64): 1e-10,
    # whole networks with gradients against their authors' code
    ("golden network", torch.float64): 1e-9,
    ("golden network", torch.float32): 1e-4,
    # the same against the formulas, over a few steps of optimizers that divide by roots of small numbers
    ("trajectory", torch.float64): 1e-9,
    # a few steps on two backends: sums in another order; one of 16 bits is now and then rounded to its neighbour
    ("trajectory", torch.float32): 1e-5,
    ("trajectory", torch.bfloat16): 2e-2,
    # formulas against formulas, float64 on both sides
    ("formula", torch.float64): 1e-12,
    # float32 arithmetic against float64: sums of up to 1e5 terms
    ("formula", torch.float32): 1e-5,
    # each element by itself, relative to itself, after some ten roundings
    ("each element", torch.float32): 2e-6,
    # losses on several ranks: each adds its share of a batch, then the shares are added; and a few steps
    # (ProLIP's were 2.3e-5 apart with AVX-512)
    ("ranks", torch.float32): 2e-6,
    ("trajectory on ranks", torch.float32): 4e-5,
    # 16-bit storage, float32 arithmetic: the result is rounded once to 8 (bfloat16) or 11 (float16) bits
    ("formula", torch.bfloat16): 1e-2,
    ("formula", torch.float16): 2e-3,
    # attention on tensor cores: weights and gradients of scores are rounded to these bits before they are multiplied,
    # and gradients are differences of products
    ("16-bit products", torch.bfloat16): 2e-2,
    ("16-bit products", torch.float16): 4e-3,
    # a norm of rows around 1e4 with deviations of 1: float32 has 3 digits of the deviations left
    ("far from zero", torch.float32): 1e-3,
    # one step of torch.optim's own: 16-bit storage, and each intermediate result is rounded to it as well
    ("torch.optim", torch.float64): 1e-12,
    ("torch.optim", torch.float32): 1e-5,
    ("torch.optim", torch.bfloat16): 4e-2,
    ("torch.optim", torch.float16): 5e-3,
    # parameters after training in a framework against the bare loop: the same operations on the same batches, but for
    # where a framework divides by the number of micro-batches
    ("adapter", torch.float32): 1e-6,
    # the packed text tower, 6 blocks, features and gradients: each block rounds to 24, 8 or 11 bits about ten times
    ("tower", torch.float32): 1e-5,
    ("tower", torch.bfloat16): 3e-2,
    ("tower", torch.float16): 5e-3,
    # bfloat16 autocast against float32: 8 bits, rounded again in every layer
    ("autocast", torch.bfloat16): 3e-2,
    # ten steps at a high rate with it: each starts where the rounding of those before has led
    ("autocast training", torch.bfloat16): 1e-1,
}


Array = Tensor | np.ndarray


def relative_error(actual: Array, expected: Array, scale: Array | None = None) -> float:
    """Largest error over the largest magnitude of `expected`, or of `scale` where the result is a difference."""
    a, e, s = (torch.as_tensor(x).detach().double() for x in (actual, expected, expected if scale is None else scale))
    assert a.shape == e.shape, f"shape {tuple(a.shape)}, expected {tuple(e.shape)}"
    if e.numel() == 0:
        return 0.0
    return float((a - e).abs().max() / s.abs().max().clamp(min=torch.finfo(torch.float64).tiny))


def assert_close(actual: Array, expected: Array, kind: str, dtype: torch.dtype, scale: Array | None = None) -> None:
    """Fail unless `actual` is as near to `expected` as the table's row (kind, dtype) asks."""
    error = relative_error(actual, expected, scale)
    assert error <= TOLERANCES[kind, dtype], f"{kind}, {dtype}: relative error {error:.2e}"
