"""NFL: the features of classes without pictures stay where hand-written prompts put them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor
from torch.nn import functional as F

from prograd_fast.clip import ZeroShotTeacher
from prograd_fast.clip.tokens import readable_class_names
from prograd_fast.methods import templates
from prograd_fast.methods.presets import few_shot
from prograd_fast.methods.prompt_tuning import PromptTuning, PromptTuningLearner, Step, Term


@dataclass(frozen=True)
class NFL(PromptTuning):
    """The novel feature learner of Ma et al., TCSVT 2023, arXiv:2211.02219.

    Code: machengcheng2016/Subspace-Prompt-Learning. With features f_n of N names without pictures, and fixed ones t_n:

        loss = CE + weight · mean over n of (1 - cos(f_n, t_n))

    The fixed ones are those of zero-shot CLIP with 80 ImageNet templates and the teacher's own.

    Attributes:
        weight: λ there.
        novel_names: The names. Empty: each tenth class name of ImageNet, where the authors have 100 of their choice in
            a pickled file. For base-to-new they give the names of the new classes.
    """

    weight: float = 1.0
    novel_names: tuple[str, ...] = ()

    name: ClassVar[str] = "nfl"
    title: ClassVar[str] = "NFL"
    year: ClassVar[int | None] = 2023
    keeps: ClassVar[str] = "features of classes without pictures, near those of hand-written prompts"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = few_shot(ctx_init="a photo of a")

    differs: ClassVar[str] = "The authors' 100 novel names are in a pickled file; here each tenth name of ImageNet."

    def extra_names(self) -> Sequence[str]:
        """The novel names."""
        return [*super().extra_names(), *self._novel_names()]

    def _novel_names(self) -> Sequence[str]:
        if self.novel_names:
            return self.novel_names
        from open_clip import IMAGENET_CLASSNAMES  # takes seconds to import

        return tuple(dict.fromkeys(IMAGENET_CLASSNAMES[::10]))

    def fixed_features(self, learner: PromptTuningLearner) -> Tensor:
        """(N, D) unit rows."""
        prompts = (*templates.IMAGENET, *self.teacher_templates)
        task = learner.task
        return ZeroShotTeacher(task.model, task.tokenizer, self._novel_names(), prompts).class_features

    def terms(self, learner: PromptTuningLearner) -> Mapping[str, Term]:
        """The distance to the fixed features."""
        rows = learner.rows_of(readable_class_names(self._novel_names()))
        fixed = self.fixed_features(learner)

        def distance(step: Step) -> Tensor:
            return self.weight * novel_distance(step.class_features[..., rows, :], fixed)

        return {**super().terms(learner), "novel": distance}


def novel_distance(features: Tensor, fixed: Tensor) -> Tensor:
    """Mean of 1 - cos; 1e-12 is added to the squared norms, as `torch.nn.CosineEmbeddingLoss` does."""
    fixed = fixed.expand_as(features).flatten(0, -2)
    return F.cosine_embedding_loss(features.flatten(0, -2), fixed, fixed.new_ones(len(fixed)))
