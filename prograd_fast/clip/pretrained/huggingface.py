"""Hugging Face's names of the weights of CLIP and SigLIP, turned into open_clip's."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

_QKV = re.compile(r"(.*)self_attn\.([qkv])_proj\.(weight|bias)")
_TEXT = {  # part of a name -> open_clip's, in a text tower
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.encoder.layers.": "transformer.resblocks.",
    "text_model.final_layer_norm.": "ln_final.",
    "self_attn.out_proj.": "attn.out_proj.",
    "self_attn.in_proj.": "attn.in_proj_",
    "layer_norm1.": "ln_1.",
    "layer_norm2.": "ln_2.",
    "mlp.fc1.": "mlp.c_fc.",
    "mlp.fc2.": "mlp.c_proj.",
}
_CLIP = _TEXT | {
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "vision_model.pre_layrnorm.": "visual.ln_pre.",  # Hugging Face's own spelling
    "vision_model.post_layernorm.": "visual.ln_post.",
    "vision_model.encoder.layers.": "visual.transformer.resblocks.",
    "visual_projection.weight": "visual.proj",
    "text_projection.weight": "text_projection",
}
_SIGLIP_VISION = {  # open_clip's image tower is timm's
    "vision_model.embeddings.patch_embedding.": "visual.trunk.patch_embed.proj.",
    "vision_model.embeddings.position_embedding.weight": "visual.trunk.pos_embed",
    "vision_model.encoder.layers.": "visual.trunk.blocks.",
    "vision_model.post_layernorm.": "visual.trunk.norm.",
    "vision_model.head.probe": "visual.trunk.attn_pool.latent",
    "vision_model.head.attention.out_proj.": "visual.trunk.attn_pool.proj.",
    "vision_model.head.layernorm.": "visual.trunk.attn_pool.norm.",
    "vision_model.head.mlp.": "visual.trunk.attn_pool.mlp.",
    "self_attn.out_proj.": "attn.proj.",
    "self_attn.in_proj.": "attn.qkv.",
    "layer_norm1.": "norm1.",
    "layer_norm2.": "norm2.",
}


def is_huggingface(state: Mapping[str, Tensor]) -> bool:
    """Whether the names are those of `transformers.CLIPModel` or `SiglipModel`."""
    return "text_model.embeddings.token_embedding.weight" in state


def to_open_clip(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same weights under open_clip's names."""
    joined = _join_attention(state)
    return _siglip(joined) if "vision_model.head.probe" in state else _clip(joined)


def _clip(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    renamed = {_rename(name, _CLIP): tensor for name, tensor in state.items()}
    for projection in ("visual.proj", "text_projection"):  # matrices that stand on the right, not linear layers
        if projection in renamed:
            renamed[projection] = renamed[projection].T
    return renamed


def _siglip(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name.startswith("text_model.head."):
            renamed[name.replace("text_model.head.", "text.text_projection.")] = tensor
        elif name.startswith("text_model."):
            renamed[f"text.{_rename(name, _TEXT)}"] = tensor
        elif name.startswith("vision_model.head.attention.in_proj_"):  # the probe asks; keys and values are one layer
            q, k, v = tensor.chunk(3)
            kind = name.rsplit("_", 1)[-1]
            renamed[f"visual.trunk.attn_pool.q.{kind}"] = q
            renamed[f"visual.trunk.attn_pool.kv.{kind}"] = torch.cat([k, v])
        else:
            renamed[_rename(name, _SIGLIP_VISION)] = tensor
    position = "visual.trunk.pos_embed"
    return renamed | ({position: renamed[position][None]} if position in renamed else {})


def _join_attention(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Queries, keys and values as one layer, "self_attn.in_proj"."""
    joined: dict[str, Tensor] = {}
    for name, tensor in state.items():
        part = _QKV.fullmatch(name)
        if part is None:
            joined[name] = tensor
        elif part[2] == "q":
            block, kind = part[1], part[3]
            others = [f"{block}self_attn.{other}_proj.{kind}" for other in "kv"]
            joined[f"{block}self_attn.in_proj.{kind}"] = torch.cat([tensor, *(state[n] for n in others if n in state)])
    return joined


def _rename(name: str, parts: Mapping[str, str]) -> str:
    for theirs, ours in parts.items():
        name = name.replace(theirs, ours)
    return name
