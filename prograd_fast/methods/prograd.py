"""ProGrad: learn from the labels, but never against the zero-shot teacher."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from prograd_fast.methods.presets import COOP, few_shot
from prograd_fast.methods.prompt_tuning import PromptTuning
from prograd_fast.methods.templates import DATASETS

_PHOTO: Mapping[str, Any] = {**COOP, "ctx_init": "a photo of a"}


@dataclass(frozen=True)
class ProGradCoOp(PromptTuning):
    """Zhu et al., ICCV 2023, arXiv:2205.14865; code BeierZhu/Prompt-align.

    With a the gradient of the cross-entropy, and b that of the KL divergence from the zero-shot teacher, a step takes

        g = a - λ · min(0, ⟨a,b⟩) / ‖b‖² · b

    λ is 1.0 in the authors' scripts, and 0.8 at 8 and 16 shots on Flowers102, DTD and EuroSAT. The words of `ctx_init`
    are the data set's own there: `prograd_fast.methods.templates.DATASETS`.
    """

    lambda_: float | None = 1.0

    name: ClassVar[str] = "prograd"
    title: ClassVar[str] = "ProGrad"
    year: ClassVar[int | None] = 2023
    keeps: ClassVar[str] = "what zero-shot predicts: no step against its gradient"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        **few_shot(ctx_init="a photo of a"),
        **{f"rn50-{n}-shot-flowers-dtd-eurosat": {**_PHOTO, "epochs": 200, "lambda_": 0.8} for n in (8, 16)},
        "rn50-base-to-new": {**_PHOTO, "epochs": 100},
        "rn50-base-to-new-imagenet": {**_PHOTO, "epochs": 50},
        "rn50-domain": {**_PHOTO, "epochs": 50},  # scripts/eval.sh: the model of the table few-shot on ImageNet
    }
    set_settings: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        name: {"ctx_init": template.removesuffix(" {}.")} for name, template in DATASETS.items()
    }
    table_shots: ClassVar[Mapping[str, int]] = {"base-to-new": 4, "domain": 4}  # scripts/base2new_*.sh, scripts/eval.sh
    differs: ClassVar[str] = (
        "The authors count words for tokens: of a template with a comma, the last token stays frozen there."
    )
