"""MaPLe with ProGrad's projection: prompts in the blocks of both towers, the image tower's made from the text tower's.

`python -m examples.image_towers.maple`. Khattak et al., CVPR 2023, arXiv:2210.03117; code
muzairkhattak/multimodal-prompt-learning. Before block j < J of the text tower the M context tokens are P_j, and before
block j of the image tower M further tokens are V_j = W_j P_j + b_j. P, W and b are trained. Published: M = 2, J = 9,
P_0 from "a photo of a", SGD at 0.0035, batches of 4, 5 epochs of 16 pictures per class. Here P_0 is random, the
optimizer is AdamW, and J is at most the number of blocks.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

import prograd_fast as pf
from examples.image_towers.common import Tuned, main
from examples.image_towers.visual_prompts import visual_prompts
from prograd_fast.clip import LoadedClip

TOKENS, DEPTH = 2, 9


class MaPLe(Tuned):
    """Prompts of the text tower, and the maps to those of the image tower."""

    def __init__(self, clip: LoadedClip) -> None:
        super().__init__(clip, lr=2e-3)
        depth = min(DEPTH, *(len(tower.transformer.resblocks) for tower in (self.model, self.model.visual)))
        net = pf.clip.PromptedCLIP(self.model, self.tokenizer, ["X"], n_ctx=TOKENS)
        self.nets = {("X",): net}
        width, visual_width = net.prompt.ctx.shape[1], self.model.visual.conv1.out_channels
        self.first = net.prompt.ctx
        self.deep = nn.Parameter(0.02 * torch.randn(depth - 1, TOKENS, width))
        self.maps = nn.ModuleList(nn.Linear(width, visual_width) for _ in range(depth))

    def class_features(self, names: Sequence[str]) -> Tensor:
        """With the prompts in the text tower."""
        if tuple(names) not in self.nets:
            self.nets[tuple(names)] = self.nets["X",].with_classes(names)
        return self.nets[tuple(names)].class_features(deep=self.deep)

    def image_features(self, images: Tensor) -> Tensor:
        """With theirs in the image tower."""
        prompts = [to_visual(prompt) for to_visual, prompt in zip(self.maps, [self.first, *self.deep], strict=True)]
        with visual_prompts(self.model.visual, prompts):
            return super().image_features(images)


if __name__ == "__main__":
    main("MaPLe", MaPLe)
