"""The packed tower stands in for some text towers only: the tests that tell which, and when."""

from typing import Any

import torch
from torch import Tensor, nn

_NORMS = (
    "torch.nn.modules.normalization.LayerNorm",
    "open_clip.transformer.LayerNorm",
    "open_clip.transformer.LayerNormFp32",
)
QUICK_GELU = "open_clip.transformer.QuickGELU"
_GELUS = ("torch.nn.modules.activation.GELU", QUICK_GELU)
LAYER_SCALE = "open_clip.transformer.LayerScale"
_SCALES = ("torch.nn.modules.linear.Identity", LAYER_SCALE)


def type_name(module: Any) -> str:
    """The type of a module by name: the core does not need open_clip."""
    return f"{type(module).__module__}.{type(module).__qualname__}"


def unlike_clip(text: Any) -> str | None:
    """Return the reason why the tower's blocks are not those of CLIP, or None if they are."""
    blocks = list(text.transformer.resblocks)
    for block in blocks:
        if type_name(block) != "open_clip.transformer.ResidualAttentionBlock" or hasattr(block, "ln_1_kv"):
            return f"its blocks are of type {type(block).__name__}, not open_clip's ResidualAttentionBlock"
        attention = block.attn
        plain = type(attention) is nn.MultiheadAttention and attention.in_proj_weight is not None
        if not plain or attention.bias_k is not None or attention.add_zero_attn:
            return "its attention is not a plain torch.nn.MultiheadAttention"
        if [name for name, _ in block.mlp.named_children()] != ["c_fc", "gelu", "c_proj"]:
            return "its MLP is not the one of CLIP"
        if any(type(layer) is not nn.Linear for layer in (block.mlp.c_fc, block.mlp.c_proj)):
            return "the linear layers of its MLP are not torch.nn.Linear"
        if type_name(block.mlp.gelu) not in _GELUS:
            return f"its activation is {type(block.mlp.gelu).__name__}, not GELU or QuickGELU"
        if (
            type_name(block.mlp.gelu) != type_name(blocks[0].mlp.gelu)
            or attention.num_heads != blocks[0].attn.num_heads
        ):
            return "its blocks differ from each other"
        if any(type_name(scale) not in _SCALES for scale in (block.ls_1, block.ls_2)):
            return "its layer scales are not open_clip's"
    norms = [text.ln_final, *(norm for block in blocks for norm in (block.ln_1, block.ln_2))]
    if any(type_name(norm) not in _NORMS or norm.weight is None or norm.bias is None for norm in norms):
        return "its norms are not plain layer norms with weight and bias"
    return None


def is_touched(text: Any) -> bool:
    """Return whether the tower's own code has to run, since its weights are trained or its modules have hooks."""
    return any(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
        for part in (text.transformer, text.ln_final)
        for module in part.modules()
    ) or (torch.is_grad_enabled() and any(p.requires_grad for p in frozen_parameters(text)))


def frozen_parameters(text: Any) -> list[Tensor]:
    """The weights that the packed tower reads: of blocks, final norm and projection."""
    return [*text.transformer.parameters(), *text.ln_final.parameters(), *_projection_parameters(text)]


def _projection_parameters(text: Any) -> list[Tensor]:
    projection = text.text_projection
    if projection is None:
        return []
    return list(projection.parameters()) if isinstance(projection, nn.Linear) else [projection]
