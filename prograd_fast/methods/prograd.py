"""ProGrad: learn from the labels, but never against the zero-shot teacher."""

from dataclasses import dataclass
from typing import ClassVar

from prograd_fast.methods.prompt_tuning import PromptTuning


@dataclass(frozen=True)
class ProGrad(PromptTuning):
    """Zhu et al., ICCV 2023, arXiv:2205.14865; code BeierZhu/Prompt-align.

    λ is 1.0 in the authors' scripts, and 0.8 at 8 and 16 shots on Flowers102, DTD and EuroSAT.
    """

    lambda_: float | None = 1.0

    name: ClassVar[str] = "prograd"
    title: ClassVar[str] = "ProGrad"
