"""The frozen weights of an open_clip text tower, as the packed tower computes with them."""

from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prograd_fast.clip.packed.compatibility import LAYER_SCALE, QUICK_GELU, Version, inventory, type_name
from prograd_fast.ops.common import accumulation_dtype
from prograd_fast.ops.gelu import APPROXIMATIONS


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

    def with_gelu(self, x: Tensor, approximate: int) -> tuple[Tensor, Tensor]:
        """The result (rows, out) for x (rows, in), and the GELU of it."""
        if self._packed is None:
            hidden, active = (x.new_empty(len(x), len(self.weight)) for _ in range(2))
            torch.ops.prograd_fast.linear_gelu_out(
                x, self.weight.contiguous(), self.bias, approximate, hidden=hidden, active=active
            )
        else:
            hidden = self(x)
            active = torch.empty_like(hidden)
            torch.ops.prograd_fast.gelu_out(hidden, approximate, out=active)
        return hidden, active

    def backward_with_gelu(self, d: Tensor, hidden: Tensor, approximate: int) -> Tensor:
        """Gradients (K, rows, in) of `hidden` (rows, in), whose GELU is x, from those of the result (K, rows, out)."""
        if self._packed_transposed is None:
            d_hidden = d.new_empty(len(d), *hidden.shape)
            torch.ops.prograd_fast.linear_gelu_backward_out(
                d, self.weight.contiguous(), hidden, approximate, d_hidden=d_hidden
            )
        else:
            d_hidden = self.backward(d)
            torch.ops.prograd_fast.gelu_backward_(d_hidden, hidden, approximate)
        return d_hidden


def _packed(weight: Tensor) -> Tensor | None:
    """The weight in oneDNN's layout, or None where oneDNN has no fast product for it."""
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available() or not torch.backends.mkldnn.enabled:
        return None
    ops = torch.ops.mkldnn
    if not (hasattr(ops, "_linear_pointwise") and hasattr(ops, "_reorder_linear_weight")):
        return None
    fast = weight.dtype == torch.float32 or (weight.dtype == torch.bfloat16 and ops._is_mkldnn_bf16_supported())
    return ops._reorder_linear_weight(weight.contiguous(), None) if fast else None


@dataclass(frozen=True)
class Norm:
    """Layer norm over d columns; weight and bias (d,) in the accumulation dtype."""

    weight: Tensor
    bias: Tensor
    eps: float


@dataclass(frozen=True)
class Block:
    """x + out(attention(qkv(norm_1(x)))), then x + down(gelu(up(norm_2(x)))). Layer scales are in `out` and `down`."""

    norm_1: Norm
    qkv: Linear
    out: Linear
    norm_2: Norm
    up: Linear
    down: Linear


@dataclass(frozen=True)
class TowerWeights:
    """A tower: blocks, final norm, projection.

    Attributes:
        blocks: at least one.
        query: the queries of the last block alone, of its `qkv`.
        key_value: its keys and values.
        norm: of the end-of-text row.
        projection: to the features, or None.
        heads: of the attention.
        approximate: which GELU, an index into `prograd_fast.ops.gelu.APPROXIMATIONS`.
    """

    blocks: tuple[Block, ...]
    query: Linear
    key_value: Linear
    norm: Norm
    projection: Linear | None
    heads: int
    approximate: int

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of activations and matrices."""
        return self.query.weight.dtype

    @property
    def width(self) -> int:
        """Columns d of the residual stream."""
        return self.norm.weight.shape[0]

    @property
    def features(self) -> int:
        """Columns D of the features."""
        return self.width if self.projection is None else self.projection.weight.shape[0]

    @property
    def scale(self) -> float:
        """The factor of the attention's scores."""
        return (self.width // self.heads) ** -0.5


# by tower: what `_read_now` made of it in each dtype, and the version of its weights then
_copies: WeakKeyDictionary[Any, dict[torch.dtype, tuple[Version, TowerWeights]]] = WeakKeyDictionary()


def read(text: Any, dtype: torch.dtype) -> TowerWeights:
    """The weights of a tower that is not `unlike_clip`: matrices in `dtype`, norms in its accumulation dtype.

    They are copies in other layouts and dtypes, as large as the tower. This module keeps them as long as the tower
    lives, for all nets over it, and reads them again after a weight was changed or moved.
    """
    copies, now = _copies.setdefault(text, {}), inventory(text).version()
    if dtype not in copies or copies[dtype][0] != now:
        copies[dtype] = now, _read_now(text, dtype)
    return copies[dtype][1]


def _read_now(text: Any, dtype: torch.dtype) -> TowerWeights:
    wide = accumulation_dtype(torch.empty((), dtype=dtype))

    def linear(weight: Tensor, bias: Tensor | None, scale: Any = None) -> Linear:
        weight, bias = weight.detach(), None if bias is None else bias.detach()
        if type_name(scale) == LAYER_SCALE:  # γ·(W·x + b)
            gamma = scale.gamma.detach()
            weight, bias = gamma[:, None] * weight, None if bias is None else gamma * bias
        return Linear(weight.to(dtype), None if bias is None else bias.to(dtype))

    def norm(module: Any) -> Norm:
        return Norm(module.weight.detach().to(wide), module.bias.detach().to(wide), module.eps)

    def block(module: Any) -> Block:
        attention, mlp = module.attn, module.mlp
        return Block(
            norm(module.ln_1),
            linear(attention.in_proj_weight, attention.in_proj_bias),
            linear(attention.out_proj.weight, attention.out_proj.bias, module.ls_1),
            norm(module.ln_2),
            linear(mlp.c_fc.weight, mlp.c_fc.bias),
            linear(mlp.c_proj.weight, mlp.c_proj.bias, module.ls_2),
        )

    blocks = list(text.transformer.resblocks)
    attention, gelu = blocks[-1].attn, blocks[0].mlp.gelu
    weights, biases = attention.in_proj_weight, attention.in_proj_bias
    parts = (slice(attention.embed_dim), slice(attention.embed_dim, None))
    query, key_value = (linear(weights[part], None if biases is None else biases[part]) for part in parts)
    last = text.text_projection
    if isinstance(last, nn.Linear):
        projection: Linear | None = linear(last.weight, last.bias)
    else:
        projection = None if last is None else linear(last.T, None)
    approximate = "sigmoid" if type_name(gelu) == QUICK_GELU else gelu.approximate
    return TowerWeights(
        blocks=tuple(map(block, blocks)),
        query=query,
        key_value=key_value,
        norm=norm(text.ln_final),
        projection=projection,
        heads=attention.num_heads,
        approximate=APPROXIMATIONS.index(approximate),
    )
