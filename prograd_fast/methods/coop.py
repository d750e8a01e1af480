"""CoOp: learn the words before the class name from the labels alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from prograd_fast.methods.presets import COOP, few_shot
from prograd_fast.methods.prompt_tuning import PromptTuning


@dataclass(frozen=True)
class CoOp(PromptTuning):
    """Zhou et al., IJCV 2022, arXiv:2109.01134; code KaiyangZhou/CoOp.

    The context v is trained by the cross-entropy of the labels, with w_c(v) the unit features of "v name_c.":

        z_c = s · ⟨x, w_c(v)⟩,   loss = mean -log softmax(z)_y

    It is prompt tuning with λ = 0: the gradient towards the teacher is measured, so that the run record tells the
    conflict, and never acts.
    """

    lambda_: float | None = 0.0

    name: ClassVar[str] = "coop"
    title: ClassVar[str] = "CoOp"
    year: ClassVar[int | None] = 2022
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        **few_shot(),
        "rn50-domain": {**COOP, "epochs": 50},  # COOP.md: the models of the table few-shot on ImageNet are tested
        # as CoCoOp's authors trained it to compare; vit_b16_ctxv1 and, on ImageNet, vit_b16_ep50_ctxv1
        "vit-b16-base-to-new": {**COOP, "ctx_init": "a photo of a", "n_ctx": 4, "epochs": 200},
        "vit-b16-base-to-new-imagenet": {**COOP, "ctx_init": "a photo of a", "n_ctx": 4, "epochs": 50},
        "vit-b16-cross-dataset": {**COOP, "ctx_init": "a photo of a", "n_ctx": 4, "epochs": 50},
    }
