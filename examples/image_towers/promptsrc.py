"""PromptSRC's visual half with ProGrad's projection: prompts in the image tower that are held near the untouched model.

`python -m examples.image_towers.promptsrc`. Khattak et al., ICCV 2023, arXiv:2307.06948; code muzairkhattak/PromptSRC.
Before block j < J of the image tower M tokens V_j stand behind those of the picture. The loss is the cross-entropy,
10 · mean |x - x₀| over the unit features with and without prompts, and mean p₀ (log p₀ - log p) over all probabilities.
What is kept is the mean of the prompts after each epoch e, weighted by a Gaussian of e. Published: M = 4, J = 9, SGD at
0.0025, batches of 4, 20 epochs with the Gaussian at 15 and a deviation of 1. The text half is `prograd_fast.methods`'
`PromptSRC`; here the class features stay zero-shot's, and the optimizer is AdamW.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from examples.image_towers.common import Seen, Tuned, main
from examples.image_towers.visual_prompts import visual_prompts
from prograd_fast.clip import LoadedClip

TOKENS, DEPTH, IMAGE_WEIGHT = 4, 9, 10.0


class VisualPromptSRC(Tuned):
    """Prompts of the image tower, and the sum of what they were."""

    def __init__(self, clip: LoadedClip) -> None:
        super().__init__(clip, lr=2e-3)
        visual = self.model.visual
        depth = min(DEPTH, len(visual.transformer.resblocks))
        self.prompts = nn.Parameter(0.02 * torch.randn(depth, TOKENS, visual.conv1.out_channels))
        self.sum = torch.zeros_like(self.prompts).detach()

    def image_features(self, images: Tensor) -> Tensor:
        """With the prompts."""
        with visual_prompts(self.model.visual, list(self.prompts)):
            return super().image_features(images)

    def penalty(self, student: Seen, teacher: Seen) -> Tensor:
        """The distances to the untouched model's features and probabilities."""
        known, now = (seen.logits.log_softmax(1) for seen in (teacher, student))
        near = (student.features - teacher.features).abs().mean()
        return IMAGE_WEIGHT * near + F.kl_div(now, known, reduction="none", log_target=True).mean()

    @torch.no_grad()
    def epoch_ended(self, epoch: int, epochs: int) -> None:
        """Add the prompts to the sum; after the last epoch they are the sum."""
        weights = (-((torch.arange(1, epochs + 1) - 0.75 * epochs) ** 2) / 2).softmax(0)
        self.sum += weights[epoch - 1] * self.prompts
        if epoch == epochs:
            self.prompts.copy_(self.sum)


if __name__ == "__main__":
    main("PromptSRC, visual half", VisualPromptSRC)
