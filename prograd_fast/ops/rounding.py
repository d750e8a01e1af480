"""Stochastic rounding to bfloat16: up or down at random, so that the mean of the result is the exact value.

An update far below the last bit of a bfloat16 parameter is lost when it is rounded to nearest, however often it comes;
rounded stochastically it arrives in the mean.

The random numbers are those of a counter, SplitMix64 of (seed, step, tensor, element). Nothing is drawn, so that any
device and order of elements gives the same bits, and a CUDA graph that is replayed reads the step from its tensor.
Integer operations of PyTorch do it, in the same code for all backends.

Source: Steele, Lea & Flood, Fast Splittable Pseudorandom Number Generators, OOPSLA 2014; Gupta et al., Deep Learning
with Limited Numerical Precision, arXiv:1502.02551.
"""

import torch
from torch import Tensor

_PIECE = 1 << 20  # elements at a time: the random numbers of each take 8 bytes


def stochastic_rounding(x: Tensor, seed: int, step: Tensor | int, tensor: int) -> Tensor:
    """Round float32 to bfloat16: to one of the two neighbours, to each with the nearness of x as its probability.

        r = SplitMix64(key + (i + 1)·γ) >> 48          16 random bits of element i, in row-major order
        key = SplitMix64(SplitMix64(seed + step·γ) + tensor·γ),   γ = 0x9E3779B97F4A7C15
        result = (bits(x) + r) >> 16

    Values that bfloat16 has, infinities and NaN stay as they are. Beyond the largest finite value is infinity, as when
    rounding to nearest.

    Args:
        x: float32, any shape.
        seed: 0 ... 2^63 - 1.
        step: a number or a 0-d tensor on the device of x, which is not waited for.
        tensor: which tensor of several this is.

    Returns:
        bfloat16 of x's shape.
    """
    flat = x.detach().to(torch.float32).flatten()
    key = torch.as_tensor(step, device=x.device).to(torch.int64).reshape(()) * _GAMMA + seed
    key = _mixed(_mixed(key) + _wrapped(tensor * _GAMMA))
    pieces = [_rounded(piece, key, _PIECE * k) for k, piece in enumerate(flat.split(_PIECE))]
    return torch.cat(pieces).reshape(x.shape)


def _rounded(x: Tensor, key: Tensor, start: int) -> Tensor:
    counter = torch.arange(start + 1, start + 1 + len(x), device=x.device)
    noise = _shifted(_mixed(counter.mul_(_GAMMA).add_(key)), 48).to(torch.int32)
    bits = (x.view(torch.int32) + noise) >> 16
    return torch.where(x.isfinite(), bits.to(torch.int16).view(torch.bfloat16), x.to(torch.bfloat16))


# ---- SplitMix64, in int64: PyTorch's unsigned dtypes have no arithmetic


def _wrapped(n: int) -> int:
    """The int64 with the low 64 bits of a number."""
    return (n + (1 << 63)) % (1 << 64) - (1 << 63)


_GAMMA, _FIRST, _SECOND = map(_wrapped, (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def _mixed(x: Tensor) -> Tensor:
    x = (x ^ _shifted(x, 30)) * _FIRST
    x = (x ^ _shifted(x, 27)) * _SECOND
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, by: int) -> Tensor:
    """To the right, with zeros from the left."""
    return (x >> by) & ((1 << (64 - by)) - 1)
