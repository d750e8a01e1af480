"""SubPT: training is held in the subspace that its own first epochs moved in."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.utils import parameters_to_vector

from prograd_fast.methods.nfl import NFL
from prograd_fast.methods.presets import COOP, FEW_SHOT_EPOCHS
from prograd_fast.methods.prompt_tuning import PromptTuning, PromptTuningLearner
from prograd_fast.methods.settings import MOST_FLOAT
from prograd_fast.optim.rules import Rule, Subspace

# README: t_early and r by the number of shots
_EARLY = {1: (10, 5), 2: (20, 10), 4: (30, 10), 8: (40, 10), 16: (50, 10)}
_WORDS: dict[str, Any] = {**COOP, "ctx_init": "a photo of a"}
PRESETS: Mapping[str, Mapping[str, Any]] = {
    **{
        f"rn50-{n}-shot": {**_WORDS, "epochs": FEW_SHOT_EPOCHS[n], "early_epochs": early, "rank": rank}
        for n, (early, rank) in _EARLY.items()
    },
    "rn50-base-to-new": {**_WORDS, "epochs": 100, "early_epochs": 30, "rank": 10},  # 4 shots
}


@dataclass(frozen=True)
class SubPT(PromptTuning):
    """Ma et al., TCSVT 2023, arXiv:2211.02219; code machengcheng2016/Subspace-Prompt-Learning.

    The first stage trains for a few epochs and remembers the parameters after each. Their principal directions are the
    rows of U. The second stage begins again from the start, and takes of every gradient the part in their span:

        g ← Uᵀ U g

    The early epochs have the rates of a whole run's first epochs, since there they are taken from one.

    Attributes:
        early_epochs: Epochs of the first stage.
        rank: Rows of U.

    Raises:
        ValueError: `rank` is not below `early_epochs`, or `lambda_` is given: the gradient has one rule only.
    """

    early_epochs: int = 20
    rank: int = 10

    name: ClassVar[str] = "subpt"
    title: ClassVar[str] = "SubPT"
    year: ClassVar[int | None] = 2023
    keeps: ClassVar[str] = "the directions of its first epochs"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = PRESETS
    table_shots: ClassVar[Mapping[str, int]] = {"base-to-new": 4}

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.rank < self.early_epochs:
            raise ValueError(f"rank must be between 1 and early_epochs - 1, {self.early_epochs - 1}, got {self.rank}")
        for name in ("lr", "warmup_lr"):  # the update under a rule multiplies tensors by them
            if getattr(self, name) > MOST_FLOAT:
                raise ValueError(f"{name} must be at most {MOST_FLOAT:g}, got {getattr(self, name)}")
        if self.lambda_ is not None:
            raise ValueError(f"lambda_ must be None, since the subspace is the gradient's rule, got {self.lambda_}")

    def stages(self) -> tuple[int, ...]:
        """The early epochs, then all of them again."""
        return (self.early_epochs, self.epochs)

    def memory(self, learner: PromptTuningLearner) -> dict[str, Tensor]:
        """Where training began, and the parameters after each early epoch; the basis afterwards."""
        start = parameters_to_vector(learner.module.parameters()).detach().clone()
        return {**super().memory(learner), "start": start, "trajectory": start.new_empty(0, len(start))}

    def epoch_ended(self, learner: PromptTuningLearner, epoch: int) -> None:
        """Remember the parameters; after the last early epoch go back to the start, into the subspace."""
        super().epoch_ended(learner, epoch)
        if epoch > self.early_epochs:
            return
        memory = learner.memory
        now = parameters_to_vector(learner.module.parameters()).detach()
        memory["trajectory"] = torch.cat([memory["trajectory"], now[None]])
        if epoch == self.early_epochs:
            memory["basis"] = Subspace.of_trajectory(memory.pop("trajectory"), self.rank).basis
            learner.set_parameters(memory["start"])
            learner.optimizer = learner.new_optimizer()

    def rule(self, learner: PromptTuningLearner) -> Rule | None:
        """The subspace, once it is known."""
        basis = learner.memory.get("basis")
        return None if basis is None else Subspace(basis)


@dataclass(frozen=True)
class SubPTNFL(SubPT, NFL):
    """Ma et al., TCSVT 2023, arXiv:2211.02219: both parts of the paper together.

    The gradient of the sum of both losses, `NFL`'s and `SubPT`'s, is projected:

        g ← Uᵀ U ∇(CE + weight · mean over n of (1 - cos(f_n, t_n)))
    """

    name: ClassVar[str] = "subpt-nfl"
    title: ClassVar[str] = "SubPT + NFL"
    year: ClassVar[int | None] = 2023
    keeps: ClassVar[str] = "the directions of its first epochs, and features of classes without pictures"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = PRESETS
