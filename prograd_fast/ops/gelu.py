"""GELU, exact or approximate, and its gradient.

Backward formulas take K cotangents at once, since prompt tuning differentiates two losses through one tower: K is the
leading size of the gradients. The weights are frozen and have no gradient.
"""

from typing import Any, Literal, get_args

import torch
from torch import Tensor

from prograd_fast.ops.checks import OneDtype
from prograd_fast.ops.common import accumulation_dtype
from prograd_fast.ops.registry import define

Approximate = Literal["none", "tanh", "sigmoid"]
APPROXIMATIONS: tuple[Approximate, ...] = get_args(Approximate)  # operators take the position

# ---- formulas


def gelu(x: Tensor, approximate: Approximate = "none") -> Tensor:
    """x·Φ(x), or an approximation of it (Hendrycks and Gimpel 2016, arXiv:1606.08415).

    Args:
        x: any shape, float.
        approximate: "none": x·(1 + erf(x/√2))/2; "tanh": x·(1 + tanh(√(2/π)·(x + 0.044715·x³)))/2; "sigmoid":
            x·σ(1.702·x), OpenAI CLIP's QuickGELU.

    Returns:
        As `x`.
    """
    u = x.to(accumulation_dtype(x))
    return (u * _gate(u, approximate)).to(x.dtype)


def gelu_backward(gradient: Tensor, x: Tensor, approximate: Approximate = "none") -> Tensor:
    """gradient·gelu'(x).

    Args:
        gradient: (K, *x.shape).
        x: what `gelu` was given.
        approximate: as there.

    Returns:
        As `gradient`.
    """
    u = x.to(accumulation_dtype(x))
    gate = _gate(u, approximate)
    if approximate == "none":
        slope = torch.exp(-u * u / 2) / (2 * torch.pi) ** 0.5
    elif approximate == "tanh":  # of (1 + tanh w)/2 = σ(2w): σ(1-σ)·2·w'
        near = u.clamp(-100, 100)  # the slope is zero long before, and u·u must not overflow
        slope = gate * (1 - gate) * (8 / torch.pi) ** 0.5 * (1 + 3 * 0.044715 * near * near)
    else:
        slope = gate * (1 - gate) * 1.702
    # the slope is exactly zero for large u, and 0 · u stays finite for finite u
    return (gradient.to(u.dtype) * (gate + u * slope)).to(gradient.dtype)


def _gate(u: Tensor, approximate: Approximate) -> Tensor:
    if approximate == "none":
        return 0.5 * (1 + torch.erf(u / 2**0.5))
    if approximate == "tanh":
        return torch.sigmoid((8 / torch.pi) ** 0.5 * (u + 0.044715 * u * u * u))
    return torch.sigmoid(1.702 * u)


# ---- operators, contiguous
#
# gelu_out        x and out of any shape
# gelu_backward_  gradient (K, *x.shape) *= gelu'(x). approximate: 0 none, 1 tanh, 2 sigmoid


def _check_gelu_input(call: dict[str, Any]) -> OneDtype:
    if not 0 <= call["approximate"] < len(APPROXIMATIONS):
        raise ValueError(f"approximate: expected 0, 1 or 2, got {call['approximate']}.")
    arguments = OneDtype("x", call["x"])
    arguments.whole("x", call["x"], arguments.shape)
    return arguments


def _check_gelu(call: dict[str, Any]) -> None:
    arguments = _check_gelu_input(call)
    arguments.whole("out", call["out"], arguments.shape)


def _check_gelu_backward(call: dict[str, Any]) -> None:
    arguments, gradient = _check_gelu_input(call), call["gradient"]
    if gradient.dim() != len(arguments.shape) + 1:
        raise ValueError(f"gradient: expected {len(arguments.shape) + 1} dimensions, got {gradient.dim()}.")
    arguments.whole("gradient", gradient, (gradient.shape[0], *arguments.shape))


def _kernel(x: Tensor, approximate: int, *, out: Tensor) -> None:
    out.copy_(gelu(x, APPROXIMATIONS[approximate]))


def _backward_kernel(gradient: Tensor, x: Tensor, approximate: int) -> None:
    gradient.copy_(gelu_backward(gradient, x, APPROXIMATIONS[approximate]))


define("gelu_out(Tensor x, int approximate, *, Tensor(a!) out) -> ()", reference=_kernel, check=_check_gelu)
define(
    "gelu_backward_(Tensor(a!) gradient, Tensor x, int approximate) -> ()",
    reference=_backward_kernel,
    check=_check_gelu_backward,
)
