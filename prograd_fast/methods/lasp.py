"""LASP: hand-written sentences must find their own class among the learned prompts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from prograd_fast.clip import ZeroShotTeacher
from prograd_fast.functional import text_to_text_loss
from prograd_fast.methods import templates
from prograd_fast.methods.class_features import Context, Corrected
from prograd_fast.methods.presets import COOP
from prograd_fast.methods.prompt_tuning import PromptTuning, PromptTuningLearner, Step, Term, all_names

RELEASED: Mapping[str, Any] = {
    **COOP, "ctx_init": "a photo of a", "n_ctx": 4, "lr": 0.032, "clip_grad_norm": 1.0
}  # fmt: skip


@dataclass(frozen=True)
class LASP(PromptTuning):
    """Bulat and Tzimiropoulos, CVPR 2023, arXiv:2210.01115; code 1adrianb/lasp, with one group of prompts.

        loss = CE - α/(L K) · Σ_l Σ_j log softmax_k(s · ⟨f_k, h_lj⟩)_j

    The second term is `prograd_fast.losses.TextToText`: the cross-entropy of L·K sentences h, template l with name j,
    where the K class features f are the weights of a classifier and j is the label. With probability 0.5 all have noise
    in a step. K counts the virtual classes, names without pictures; for base-to-new the authors always give the new
    classes' names there. They may take part in the cross-entropy of the pictures as well (`virtual_in_logits`).

    The authors also train the image tower's layer norms, at a tenth of the rate. The training loop, which sees every
    picture once, does not. With a loop of one's own: `learner.optimizer.add_param_group`, before each step
    `norm.requires_grad_()` (whoever builds a network freezes the model), and features with a graph in `learner.losses`.

    Attributes:
        alpha: α.
        sentences: The L templates.
        virtual_classes: Names without pictures.
        virtual_in_logits: Whether these are wrong answers for the pictures too (the authors' INCLUDE_ALL_CLASSES).
        noise: Standard deviation σ of the noise on the sentences' unit features, which are not normalised again.
        correction: Whether a learned vector is added to the class features (ENABLE_CORRECTION).
    """

    alpha: float = 5.0
    sentences: tuple[str, ...] = templates.LASP
    virtual_classes: tuple[str, ...] = ()
    virtual_in_logits: bool = False
    noise: float = 0.05
    correction: bool = True

    name: ClassVar[str] = "lasp"
    title: ClassVar[str] = "LASP"
    year: ClassVar[int | None] = 2023
    trains: ClassVar[str] = "context tokens, a correction of the class features"
    keeps: ClassVar[str] = "the sentences of each class apart"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {  # configs/LASP, 16 shots
        "vit-b16-base-to-new": {**RELEASED, "epochs": 25, "warmup_epochs": 3},
        "vit-b16-base-to-new-caltech-dtd-ucf": {**RELEASED, "epochs": 50, "warmup_epochs": 5, "alpha": 10.0},
        "vit-b16-base-to-new-eurosat": {**RELEASED, "epochs": 300, "warmup_epochs": 7},
        "vit-b16-base-to-new-food": {**RELEASED, "epochs": 10, "warmup_epochs": 1, "batch_size": 1, "lr": 0.002},
    }

    differs: ClassVar[str] = (
        "The authors train the layer norms of the image tower too, and give the names of new classes as virtual ones."
    )

    def extra_names(self) -> Sequence[str]:
        """The virtual classes."""
        return [*super().extra_names(), *self.virtual_classes]

    def extra_logit_names(self) -> Sequence[str]:
        """The virtual classes, if they are to be."""
        return self.virtual_classes if self.virtual_in_logits else ()

    def context(self, learner: PromptTuningLearner) -> Context:
        """The context and the correction."""
        ctx = learner.net.prompt.ctx
        return Corrected(ctx, learner.n_features) if self.correction else Context(ctx)

    def terms(self, learner: PromptTuningLearner) -> Mapping[str, Term]:
        """The text-to-text loss."""
        task = learner.task
        names = all_names(task.class_names, self.virtual_classes)
        rows = learner.rows_of(names)
        teachers = (ZeroShotTeacher(task.model, task.tokenizer, names, sentence) for sentence in self.sentences)
        sentences = torch.stack([teacher.class_features for teacher in teachers])

        def text_to_text(step: Step) -> Tensor:
            noisy = sentences + self.draw(learner.generator, sentences)
            return self.alpha * text_to_text_loss(step.class_features[rows], noisy, learner.scale)

        return {**super().terms(learner), "text_to_text": text_to_text}

    def draw(self, generator: torch.Generator, like: Tensor) -> Tensor:
        """The noise of one step, zero with probability 0.5."""
        options: dict[str, Any] = {"generator": generator, "device": like.device, "dtype": like.dtype}
        return self.noise * torch.randn(like.shape, **options) * (torch.rand((), **options) < 0.5)
