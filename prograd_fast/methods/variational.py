"""Variational (Bayesian) prompts: a distribution of contexts instead of one."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from prograd_fast.methods.class_features import Context, Sampled, SampledPerPicture
from prograd_fast.methods.presets import COOP
from prograd_fast.methods.prompt_tuning import PromptTuning, PromptTuningLearner, Step, Term

RELEASED: Mapping[str, Any] = {**COOP, "ctx_init": "a photo of a", "n_ctx": 4, "batch_size": 1, "conditional": False}
MOST_SAMPLES = 10_000  # each has class features of its own; the authors take 40 at most
_SAMPLES_AND_EPOCHS = {  # VPT.md
    "caltech": (20, 20), "pets": (40, 20), "cars": (20, 40), "flowers": (10, 40), "food": (20, 20),
    "aircraft": (10, 10), "sun": (20, 10), "dtd": (40, 10), "eurosat": (20, 60), "ucf": (5, 20), "imagenet": (10, 10),
}  # fmt: skip


@dataclass(frozen=True)
class Variational(PromptTuning):
    """Derakhshani et al., ICCV 2023, arXiv:2210.02390; code saic-fi/Bayesian-Prompt-Learning.

    A prediction is the mean of the probabilities of S contexts v + r_s, with r_s from a trained normal distribution q:

        p = mean over s of softmax(z(v + r_s)),   loss = mean -log p_y + kl_weight · KL(q ‖ N(0, I))

    The KL divergence is a mean over the components, not a sum.

    Attributes:
        samples: S, contexts in each step and at the test.
        conditional: Whether the distribution depends on the picture: CoCoOp's variational form. The released settings
            have False.
        kl_weight: Fixed at 0.001 in the authors' code.

    Raises:
        ValueError: a setting is out of range.
    """

    samples: int = 10
    conditional: bool = False
    kl_weight: float = 0.001

    name: ClassVar[str] = "variational"
    title: ClassVar[str] = "variational"
    year: ClassVar[int | None] = 2023
    trains: ClassVar[str] = "a distribution of context tokens"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        f"vit-b16-base-to-new-{data}": {**RELEASED, "samples": samples, "epochs": epochs}
        for data, (samples, epochs) in _SAMPLES_AND_EPOCHS.items()
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.samples <= MOST_SAMPLES:
            raise ValueError(f"samples must be 1 or more, and {MOST_SAMPLES} at most, got {self.samples}")

    def context(self, learner: PromptTuningLearner) -> Context:
        """The context and its distribution."""
        ctx = learner.net.prompt.ctx
        if self.conditional:
            return SampledPerPicture(ctx, self.samples, learner.n_features)
        return Sampled(ctx, self.samples)

    def terms(self, learner: PromptTuningLearner) -> Mapping[str, Term]:
        """The divergence from the prior."""

        def divergence(step: Step) -> Tensor:
            assert isinstance(learner.context, Sampled)
            return self.kl_weight * learner.context.divergence(step.image_features)

        return {**super().terms(learner), "prior": divergence}
