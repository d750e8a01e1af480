"""The frozen weights of an open_clip text tower, as the packed tower computes with them."""

from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from prograd_fast.clip.linear import Linear
from prograd_fast.ops.common import accumulation_dtype
from prograd_fast.ops.gelu import APPROXIMATIONS


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
class Weights:
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
        """Of activations and matrices."""
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
        """Of the attention's scores."""
        return (self.width // self.heads) ** -0.5


_NORMS = (
    "torch.nn.modules.normalization.LayerNorm",
    "open_clip.transformer.LayerNorm",
    "open_clip.transformer.LayerNormFp32",
)
_GELUS = ("torch.nn.modules.activation.GELU", "open_clip.transformer.QuickGELU")
_SCALES = ("torch.nn.modules.linear.Identity", "open_clip.transformer.LayerScale")


def _kind(module: Any) -> str:  # by name: the core does not need open_clip
    return f"{type(module).__module__}.{type(module).__qualname__}"


def unlike_clip(text: Any) -> str | None:
    """Why the tower's blocks are not those of CLIP, or None where they are."""
    blocks = list(text.transformer.resblocks)
    for block in blocks:
        if _kind(block) != "open_clip.transformer.ResidualAttentionBlock" or hasattr(block, "ln_1_kv"):
            return f"its blocks are of type {type(block).__name__}, not open_clip's ResidualAttentionBlock"
        attention = block.attn
        plain = type(attention) is nn.MultiheadAttention and attention.in_proj_weight is not None
        if not plain or attention.bias_k is not None or attention.add_zero_attn:
            return "its attention is not a plain torch.nn.MultiheadAttention"
        if [name for name, _ in block.mlp.named_children()] != ["c_fc", "gelu", "c_proj"]:
            return "its MLP is not the one of CLIP"
        if any(type(layer) is not nn.Linear for layer in (block.mlp.c_fc, block.mlp.c_proj)):
            return "the linear layers of its MLP are not torch.nn.Linear"
        if _kind(block.mlp.gelu) not in _GELUS:
            return f"its activation is {type(block.mlp.gelu).__name__}, not GELU or QuickGELU"
        if _kind(block.mlp.gelu) != _kind(blocks[0].mlp.gelu) or attention.num_heads != blocks[0].attn.num_heads:
            return "its blocks differ from each other"
        if any(_kind(scale) not in _SCALES for scale in (block.ls_1, block.ls_2)):
            return "its layer scales are not open_clip's"
    norms = [text.ln_final, *(norm for block in blocks for norm in (block.ln_1, block.ln_2))]
    if any(_kind(norm) not in _NORMS or norm.weight is None or norm.bias is None for norm in norms):
        return "its norms are not plain layer norms with weight and bias"
    return None


def is_touched(text: Any) -> bool:
    """Whether somebody trains the tower's weights or listens to its modules: then its own code has to run."""
    return any(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
        for part in (text.transformer, text.ln_final)
        for module in part.modules()
    ) or (torch.is_grad_enabled() and any(p.requires_grad for p in _parameters(text)))


def _parameters(text: Any) -> list[Tensor]:
    return [*text.transformer.parameters(), *text.ln_final.parameters(), *_projection_parameters(text)]


def _projection_parameters(text: Any) -> list[Tensor]:
    projection = text.text_projection
    if projection is None:
        return []
    return list(projection.parameters()) if isinstance(projection, nn.Linear) else [projection]


def version(text: Any) -> tuple[Any, ...]:
    """Changes whenever a weight does."""
    return tuple((p.data_ptr(), p._version) for p in _parameters(text))


_read: WeakKeyDictionary[Any, dict[torch.dtype, tuple[Any, Weights]]] = WeakKeyDictionary()


def read(text: Any, dtype: torch.dtype) -> Weights:
    """The weights of a tower that is not `unlike_clip`: matrices in `dtype`, norms in its accumulation dtype.

    All nets over one tower share them; they are read again after a weight was changed or moved.
    """
    known = _read.setdefault(text, {})
    key = version(text)
    if dtype not in known or known[dtype][0] != key:
        known[dtype] = key, _read_now(text, dtype)
    return known[dtype][1]


def _read_now(text: Any, dtype: torch.dtype) -> Weights:
    wide = accumulation_dtype(torch.empty((), dtype=dtype))

    def linear(weight: Tensor, bias: Tensor | None, scale: Any = None) -> Linear:
        weight, bias = weight.detach(), None if bias is None else bias.detach()
        if _kind(scale) == _SCALES[1]:  # γ·(W·x + b)
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
    approximate = "sigmoid" if _kind(gelu) == _GELUS[1] else gelu.approximate
    return Weights(
        tuple(map(block, blocks)),
        query,
        key_value,
        norm(text.ln_final),
        projection,
        attention.num_heads,
        APPROXIMATIONS.index(approximate),
    )
