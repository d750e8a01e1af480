"""CoOp: learn the words before the class name from the labels alone."""

from dataclasses import dataclass
from typing import ClassVar

from prograd_fast.methods.prompt_tuning import PromptTuning


@dataclass(frozen=True)
class CoOp(PromptTuning):
    """Zhou et al., IJCV 2022, arXiv:2109.01134; code KaiyangZhou/CoOp.

    It is prompt tuning with λ = 0: the gradient towards the teacher is measured, so that the run record tells the
    conflict, and never acts.
    """

    lambda_: float | None = 0.0

    name: ClassVar[str] = "coop"
    title: ClassVar[str] = "CoOp"
