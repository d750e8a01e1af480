"""Features of the patches of a picture, from a tower that was trained on whole pictures: MaskCLIP's dense features.

Zhou et al., ECCV 2022, arXiv:2112.01071; code chongzhou96/MaskCLIP. The last pooling or attention mixes all positions
of a picture. Without it, each position stays by itself and still ends in the space of the class features:

    vision transformer, last block:   v = x + W_out (W_v LN1(x) + b_v) + b_out,   f = (LN_post(v + MLP(LN2(v)))) P
    ResNet with attention pooling:    f = W_c (W_v x + b_v) + b_c
    timm tower with average pooling:  f = head(x)
    emoji-lite's tower:               f = head(what it reads of the part of the picture at a position)

x is what the layers before have at a position. A transformer's class token is left out. Emoji-lite's head reads
averages of finer maps too, and of quarters: of a part it reads the part's own quarters. So the feature of the only part
is the picture's. If there are more and the picture's sides are multiples of 32 pixels, the mean of the parts, before
they are unit rows, is what the head says if in each quarter it reads the mean of that quarter of all parts.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prograd_fast.clip.emoji_lite import averages


@torch.no_grad()
def patch_features(model: nn.Module, images: Tensor) -> Tensor:
    """Encode each patch of pictures.

    Args:
        model: an open_clip model, or another with such a tower as `visual`.
        images: (B, 3, H, W), preprocessed. A transformer takes its own size alone, the others also larger pictures.

    Returns:
        (B, h, w, D) unit rows in the space of the class features, without graph, in the tower's dtype.

    Raises:
        ValueError: the tower pools in a way that is not among the four above, or is in training mode.
    """
    tower: Any = model.visual
    if tower.training:
        raise ValueError(
            "model: expected an image tower in evaluation mode, got one in training mode, where batch norm mixes "
            "pictures and patches are dropped. Call model.eval()."
        )
    if hasattr(tower, "attnpool"):
        features = _of_resnet(tower, images)
    elif hasattr(tower, "maps"):  # emoji-lite's
        maps = tower.maps(images)
        features = tower.head(averages(maps, *maps[-1].shape[2:]))
    elif hasattr(tower, "trunk") and _averages(tower.trunk):
        features = tower.head(tower.trunk.forward_features(images).permute(0, 2, 3, 1))
    elif _has_class_token(tower):
        features = _of_transformer(tower, images)
    else:
        raise ValueError(
            f"model: expected a vision transformer with a class token, a ResNet with attention pooling or a timm tower "
            f"with average pooling, got {type(tower).__name__}, whose patches have no place among the class features."
        )
    return F.normalize(features, dim=-1)


def _averages(trunk: Any) -> bool:
    """Whether a timm trunk ends in a map of features, its mean, and nothing between the mean and the head."""
    pool = getattr(trunk, "global_pool", None)
    if getattr(pool, "pool_type", None) != "avg" or not isinstance(trunk.get_classifier(), nn.Identity):
        return False
    width: int = trunk.num_features
    return getattr(trunk, "head_hidden_size", width) == width  # MobileNet v3 has a layer behind the mean


def _has_class_token(tower: Any) -> bool:
    """Whether a tower is CLIP's vision transformer, with PyTorch's attention in its last block."""
    own = getattr(tower, "pool_type", None) == "tok" and getattr(tower, "attn_pool", None) is None
    return own and isinstance(getattr(tower.transformer.resblocks[-1], "attn", None), nn.MultiheadAttention)


def _of_resnet(tower: Any, images: Tensor) -> Tensor:
    x = tower.stem(images)
    for layer in (tower.layer1, tower.layer2, tower.layer3, tower.layer4):
        x = layer(x)
    features: Tensor = tower.attnpool.c_proj(tower.attnpool.v_proj(x.permute(0, 2, 3, 1)))
    return features


def _of_transformer(tower: Any, images: Tensor) -> Tensor:
    *blocks, last = tower.transformer.resblocks
    x = tower._embeds(images)
    for block in blocks:
        x = block(x)
    attention, d = last.attn, x.shape[-1]
    values = F.linear(last.ln_1(x), attention.in_proj_weight[2 * d :], attention.in_proj_bias[2 * d :])
    v = x + last.ls_1(attention.out_proj(values))
    v = v + last.ls_2(last.mlp(last.ln_2(v)))
    rows, columns = tower.grid_size
    features: Tensor = tower.ln_post(v[:, 1:]) @ tower.proj
    return features.unflatten(1, (rows, columns))
