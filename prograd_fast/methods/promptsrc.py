"""PromptSRC's text side: deep prompts, held near the untouched model and averaged over the epochs."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils import parameters_to_vector

from prograd_fast.clip import template_features
from prograd_fast.methods import templates
from prograd_fast.methods.class_features import Context, Deep
from prograd_fast.methods.presets import COOP
from prograd_fast.methods.prompt_tuning import PromptTuning, PromptTuningLearner, Step, Term

MOST_BLOCKS = 100  # no text tower has more
RELEASED: Mapping[str, Any] = {
    **COOP, "ctx_init": "a photo of a", "n_ctx": 4, "lr": 0.0025, "batch_size": 4, "epochs": 20, "depth": 9
}  # fmt: skip


@dataclass(frozen=True)
class PromptSRC(PromptTuning):
    """Khattak et al., ICCV 2023, arXiv:2307.06948; code muzairkhattak/PromptSRC, without prompts in the image tower.

        loss = CE + text_weight · mean |W - Ŵ| + logit_weight · 1/(B·C) · Σ p̂ (log p̂ - log p)

    over all C·D entries and all B·C. W: class features; p: probabilities. Ŵ: features of the untouched model, averaged
    over the prompts before they are normalised; p̂: its probabilities.
    What is kept in the end is the mean of the parameters after each epoch e, weighted by N(e; gpa_mean, gpa_std).

    Attributes:
        depth: Blocks of the text tower with context tokens of their own, the input's included.
        text_weight: See above.
        logit_weight: See above; 1 in the authors' code.
        gpa_mean: Epoch with the largest weight; None: three quarters of all, as in their base-to-new settings.
        gpa_std: How fast the weights fall around it, in epochs.
        sentences: Prompts of the untouched model.

    Raises:
        ValueError: a setting is out of range.
    """

    depth: int = 2
    text_weight: float = 25.0
    logit_weight: float = 1.0
    gpa_mean: float | None = None
    gpa_std: float = 1.0
    sentences: tuple[str, ...] = templates.IMAGENET[:60]

    name: ClassVar[str] = "promptsrc"
    title: ClassVar[str] = "PromptSRC (text)"
    year: ClassVar[int | None] = 2023
    trains: ClassVar[str] = "context tokens in several blocks"
    keeps: ClassVar[str] = "features and predictions near zero-shot, by two losses"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {  # configs/trainers/PromptSRC
        "vit-b16-base-to-new": {**RELEASED, "gpa_mean": 15.0, "gpa_std": 1.0},
        "vit-b16-cross-dataset": {**RELEASED, "depth": 3, "gpa_mean": 6.0, "gpa_std": 10.0},
        "vit-b16-few-shot": {**RELEASED, "epochs": 50, "gpa_mean": 30.0, "gpa_std": 30.0},
        "vit-b16-few-shot-late": {**RELEASED, "epochs": 50, "gpa_mean": 45.0, "gpa_std": 5.0},
    }
    differs: ClassVar[str] = "The authors train prompts in the image tower too; this is the text side alone."

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.depth <= MOST_BLOCKS:
            raise ValueError(f"depth must be 1 or more, and {MOST_BLOCKS} at most, got {self.depth}")
        if self.gpa_std < 1e-6:
            raise ValueError(f"gpa_std must be {1e-6} or more, got {self.gpa_std}")

    def context(self, learner: PromptTuningLearner) -> Context:
        """The context and the deeper ones."""
        return Deep(learner.net.prompt.ctx, self.depth)

    def terms(self, learner: PromptTuningLearner) -> Mapping[str, Term]:
        """The distances to the untouched model's features and probabilities."""
        fixed = self.fixed_features(learner)

        def text(step: Step) -> Tensor:
            return self.text_weight * (step.class_features[..., : len(fixed), :] - fixed).abs().mean()

        def logits(step: Step) -> Tensor:
            teacher = learner.net.logits(step.image_features.detach(), fixed).log_softmax(1)
            student = step.logits.log_softmax(1)
            return self.logit_weight * F.kl_div(student, teacher, reduction="none", log_target=True).mean()

        return {**super().terms(learner), "text": text, "logits": logits}

    @torch.no_grad()
    def fixed_features(self, learner: PromptTuningLearner) -> Tensor:
        """Ŵ, (C, D) unit rows."""
        task = learner.task
        features = template_features(task.model, task.tokenizer, learner.class_names, self.sentences)
        return F.normalize(features.mean(0), dim=-1)

    def memory(self, learner: PromptTuningLearner) -> dict[str, Tensor]:
        """The sum so far."""
        zeros = torch.zeros_like(parameters_to_vector(learner.module.parameters())).detach()
        return {**super().memory(learner), "aggregated": zeros}

    def epoch_ended(self, learner: PromptTuningLearner, epoch: int) -> None:
        """Add the parameters to the sum; after the last epoch they are the sum."""
        super().epoch_ended(learner, epoch)
        now = parameters_to_vector(learner.module.parameters()).detach()
        learner.memory["aggregated"] += self.weights()[epoch - 1].item() * now
        if epoch == self.epochs:
            learner.set_parameters(learner.memory["aggregated"])

    def weights(self) -> Tensor:
        """(epochs,) weights of the epochs, float64, with sum 1."""
        mean = 0.75 * self.epochs if self.gpa_mean is None else self.gpa_mean
        epochs = torch.arange(1, self.epochs + 1, dtype=torch.float64)
        return torch.softmax(-(((epochs - mean) / self.gpa_std) ** 2) / 2, dim=0)
