"""Learned tokens in the first blocks of open_clip's ViT, as MaPLe and PromptSRC put them there."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn


@contextmanager
def visual_prompts(tower: VisionTransformer, prompts: Sequence[Tensor]) -> Iterator[None]:
    """Within the block, the tower has learned tokens behind those of the picture.

    Args:
        tower: It takes the class token in the end, as CLIP's does.
        prompts: (M, d) for each of the first J blocks. Those of the first come in before the layer norm, as in the
            authors' code, and before each of the others the last M tokens are replaced.
    """

    def put_in(prompt: Tensor, replaced: int) -> Any:
        def hook(module: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            x, *rest = arguments
            picture = x[:, : x.shape[1] - replaced]
            return torch.cat([picture, prompt.expand(len(x), -1, -1)], 1), *rest

        return hook

    blocks = tower.transformer.resblocks
    handles = [tower.ln_pre.register_forward_pre_hook(put_in(prompts[0], 0))]
    for block, prompt in zip(blocks[1:], prompts[1:], strict=False):
        handles.append(block.register_forward_pre_hook(put_in(prompt, len(prompt))))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
