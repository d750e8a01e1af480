"""A linear layer and the GELU behind it, of an MLP whose weights are frozen, and the way back through both.

Where no backend has kernels of its own, the product is PyTorch's, and the GELU the operator of `prograd_fast.ops.gelu`.
"""

from typing import Any

import torch
from torch import Tensor

from prograd_fast.ops.checks import OneDtype
from prograd_fast.ops.gelu import APPROXIMATIONS
from prograd_fast.ops.registry import define

# ---- operators, of one dtype
#
# linear_gelu_out           hidden (R, H) = x (R, D) @ weight (H, D)ᵀ + bias (H,), active = gelu(hidden): contiguous
# linear_gelu_backward_out  d_hidden[k] (K, R, H) = gelu'(hidden)·(gradient[k] (K, R, D) @ weight (D, H)): contiguous;
#                           the weight is that of the layer behind the GELU. approximate: 0 none, 1 tanh, 2 sigmoid


def _arguments(call: dict[str, Any], name: str, what: str) -> OneDtype:
    if not 0 <= call["approximate"] < len(APPROXIMATIONS):
        raise ValueError(f"approximate: expected 0, 1 or 2, got {call['approximate']}.")
    return OneDtype(name, call[name], what)


def _check(call: dict[str, Any]) -> None:
    arguments = _arguments(call, "x", "rows, features")
    rows, features = arguments.shape
    (hidden, _) = arguments.sizes("weight", call["weight"], "hidden, features")
    arguments.rows("x", call["x"], (rows, features))
    arguments.whole("weight", call["weight"], (hidden, features))
    if call["bias"] is not None:
        arguments.whole("bias", call["bias"], (hidden,))
    for name in ("hidden", "active"):
        arguments.whole(name, call[name], (rows, hidden))


def _check_backward(call: dict[str, Any]) -> None:
    arguments = _arguments(call, "gradient", "cotangents, rows, features")
    cotangents, rows, features = arguments.shape
    (_, hidden) = arguments.sizes("weight", call["weight"], "features, hidden")
    arguments.rows("gradient", call["gradient"], arguments.shape)
    arguments.whole("weight", call["weight"], (features, hidden))
    arguments.whole("hidden", call["hidden"], (rows, hidden))
    arguments.whole("d_hidden", call["d_hidden"], (cotangents, rows, hidden))


def linear_gelu(
    x: Tensor, weight: Tensor, bias: Tensor | None, approximate: int, *, hidden: Tensor, active: Tensor
) -> None:
    """The operator `linear_gelu_out` by a product of PyTorch and a GELU: two launches."""
    if bias is None:
        torch.mm(x, weight.T, out=hidden)
    else:
        torch.addmm(bias, x, weight.T, out=hidden)
    torch.ops.prograd_fast.gelu_out(hidden, approximate, out=active)


def linear_gelu_backward(
    gradient: Tensor, weight: Tensor, hidden: Tensor, approximate: int, *, d_hidden: Tensor
) -> None:
    """The operator `linear_gelu_backward_out` in the same way."""
    torch.matmul(gradient, weight, out=d_hidden)
    torch.ops.prograd_fast.gelu_backward_(d_hidden, hidden, approximate)


define(
    "linear_gelu_out(Tensor x, Tensor weight, Tensor? bias, int approximate, *, Tensor(a!) hidden, Tensor(b!) active) "
    "-> ()",
    reference=linear_gelu,
    check=_check,
)
define(
    "linear_gelu_backward_out(Tensor gradient, Tensor weight, Tensor hidden, int approximate, *, Tensor(a!) d_hidden) "
    "-> ()",
    reference=linear_gelu_backward,
    check=_check_backward,
)
