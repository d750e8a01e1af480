"""The tiny CLIP that a golden file's recipe describes."""

from typing import Any

import numpy as np
import torch
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg


def golden_clip(recipe: dict[str, Any], dtype: torch.dtype = torch.float64) -> CLIP:
    """The model with the recipe's weights, as tests/golden/README.md says how to draw them."""
    arch = recipe["arch"]
    model = CLIP(
        arch["embed_dim"],
        CLIPVisionCfg(
            layers=arch["vision_layers"],
            width=arch["vision_width"],
            head_width=64,
            patch_size=arch["vision_patch_size"],
            image_size=arch["image_resolution"],
        ),
        CLIPTextCfg(
            context_length=arch["context_length"],
            vocab_size=arch["vocab_size"],
            width=arch["transformer_width"],
            heads=arch["transformer_heads"],
            layers=arch["transformer_layers"],
        ),
        quick_gelu=True,
    )
    rng = np.random.default_rng(recipe["seed"])
    weights = {}
    for name in sorted(recipe["weights"]):
        shape, mean, std = recipe["weights"][name]
        value = np.array(mean) if name == "logit_scale" else mean + std * rng.standard_normal(shape)
        weights[name] = torch.from_numpy(value)
    model = model.to(dtype)
    model.load_state_dict(weights)
    return model
