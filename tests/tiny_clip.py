"""Tiny open_clip models with random weights, real architecture and real vocabulary."""

import open_clip
import torch
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg, CustomTextCLIP
from open_clip.transformer import TextTransformer
from torch import nn

TOKENIZER = open_clip.get_tokenizer("ViT-B-32")  # OpenAI's vocabulary; in open_clip's package, no network

# One token, several, digits and hyphens, an underscore, a sign that merges with the full stop: names of uneven lengths,
# so that the end of text is elsewhere in every prompt.
CLASS_NAMES = ["cat", "Boeing 737-200", "extraordinarily long-haired dachshund", "tabby_cat", "St. Bernard etc."]


def tiny_clip(
    cls: type[nn.Module] = CLIP,
    *,
    dtype: torch.dtype = torch.float64,
    init_logit_bias: float | None = None,
    quick_gelu: bool = False,
    **text,
) -> nn.Module:
    """A model of 2 text layers, 32 wide, features 24 wide; `text` goes to the text tower's configuration."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = cls(
            embed_dim=24,
            vision_cfg=CLIPVisionCfg(layers=1, width=32, head_width=16, patch_size=8, image_size=16),
            text_cfg=CLIPTextCfg(**{"width": 32, "heads": 2, "layers": 2} | text),
            init_logit_bias=init_logit_bias,
            quick_gelu=quick_gelu,
        )
        for p in model.parameters():  # away from the zeros and ones that biases and norms start with
            p.data.add_(0.05 * torch.randn_like(p))
    return model.to(dtype).eval()


def pad_mask_clip() -> nn.Module:
    """A bidirectional tower that masks padding: open_clip's configurations cannot ask for it, its tower can."""
    model = tiny_clip(CustomTextCLIP)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model.text = TextTransformer(width=32, heads=2, layers=2, output_dim=24, no_causal_mask=True, use_pad_mask=True)
    return model.double().eval()


CUT = {  # towers whose prompts are cut after the end of text
    "CLIP": lambda: tiny_clip(),
    "CustomTextCLIP": lambda: tiny_clip(CustomTextCLIP),
    "pools at eos id": lambda: tiny_clip(pool_type="eos", eos_id=49407),
    "projection with bias": lambda: tiny_clip(CustomTextCLIP, proj_bias=True),
    "no projection": lambda: tiny_clip(CustomTextCLIP, proj_type="none"),
    "QuickGELU": lambda: tiny_clip(quick_gelu=True),
    "tanh GELU": lambda: tiny_clip(act_kwargs={"approximate": "tanh"}),
    "layer scale": lambda: tiny_clip(ls_init_value=0.3),
    "one block": lambda: tiny_clip(layers=1),
    "four heads, narrow MLP": lambda: tiny_clip(heads=4, mlp_ratio=1.5, layers=3),
    "other attention block": lambda: tiny_clip(qk_norm=True),
}
WHOLE = {  # towers that need every position
    "not causal": lambda: tiny_clip(no_causal_mask=True),
    "pools last, bias": lambda: tiny_clip(CustomTextCLIP, pool_type="last", no_causal_mask=True, init_logit_bias=-10.0),
    "causal, pools last": lambda: tiny_clip(CustomTextCLIP, pool_type="last"),
    "causal, pools first": lambda: tiny_clip(pool_type="first"),
    "appended CLS": lambda: tiny_clip(CustomTextCLIP, embed_cls=True),
    "padding mask": pad_mask_clip,
}
