"""A frozen linear layer by the fastest matrix product that there is for it."""

import torch
from torch import Tensor
from torch.nn import functional as F


class Linear:
    """x @ weight.T + bias, and its backward d @ weight.

    On a CPU a frozen weight is worth a copy in the layout of oneDNN, which PyTorch's compiler packs weights for: its
    products then take less than half of the time of those that PyTorch's eager mode asks of MKL on the AMD processor of
    docs/benchmarks.md, and no call has to convert the weight.

    Args:
        weight: (out, in), frozen.
        bias: (out,), or None.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight = weight
        self.bias = bias
        self._packed = _packed(weight)
        self._packed_transposed = None if self._packed is None else _packed(weight.T.contiguous())

    def __call__(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        if self._packed is None:
            return F.linear(x, self.weight, self.bias)
        return torch.ops.mkldnn._linear_pointwise(x.contiguous(), self._packed, self.bias, "none", [], "")

    def backward(self, d: Tensor) -> Tensor:
        """The gradient (..., in) of x from that of the result (..., out)."""
        if self._packed_transposed is None:
            return d @ self.weight
        return torch.ops.mkldnn._linear_pointwise(d.contiguous(), self._packed_transposed, None, "none", [], "")


def _packed(weight: Tensor) -> Tensor | None:
    """The weight in oneDNN's layout, or None where oneDNN has no fast product for it."""
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available() or not torch.backends.mkldnn.enabled:
        return None
    ops = torch.ops.mkldnn
    if not (hasattr(ops, "_linear_pointwise") and hasattr(ops, "_reorder_linear_weight")):
        return None
    fast = weight.dtype == torch.float32 or (weight.dtype == torch.bfloat16 and ops._is_mkldnn_bf16_supported())
    return ops._reorder_linear_weight(weight.contiguous(), None) if fast else None
