"""KgCoOp: the class features stay near those of the hand-written prompts."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor
from torch.nn import functional as F

from prograd_fast.methods.presets import COOP
from prograd_fast.methods.prompt_tuning import PromptTuning, PromptTuningLearner, Step, Term
from prograd_fast.methods.templates import KGCOOP, by_set


@dataclass(frozen=True)
class KgCoOp(PromptTuning):
    """Yao et al., CVPR 2023, arXiv:2303.13283; code htyao89/KgCoOp.

    With f_c the features of the learned prompts and t_c those of the teacher:

        loss = CE + w · (1 - mean over c of cos(f_c, t_c))

    Attributes:
        weight: w.
    """

    weight: float = 8.0

    name: ClassVar[str] = "kgcoop"
    title: ClassVar[str] = "KgCoOp"
    year: ClassVar[int | None] = 2023
    keeps: ClassVar[str] = "class features near those of hand-written prompts"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        # scripts/base2new_train.sh, 16 shots
        "vit-b16-base-to-new": {**COOP, "ctx_init": "a photo of a", "n_ctx": 4, "batch_size": 128, "epochs": 100},
    }

    set_settings: ClassVar[Mapping[str, Mapping[str, Any]]] = by_set(KGCOOP)

    def terms(self, learner: PromptTuningLearner) -> Mapping[str, Term]:
        """The distance to the teacher's features."""
        fixed = learner.teacher.class_features

        def distance(step: Step) -> Tensor:
            features = step.class_features[..., : len(fixed), :]
            return self.weight * (1 - F.cosine_similarity(features, fixed, dim=-1, eps=1e-7).mean())

        return {**super().terms(learner), "knowledge": distance}
