"""CoCoOp: the context depends on the picture."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from prograd_fast.methods.class_features import Context, PerPicture
from prograd_fast.methods.presets import COOP
from prograd_fast.methods.prompt_tuning import PromptTuning, PromptTuningLearner

_AUTHORS: Mapping[str, Any] = {**COOP, "ctx_init": "a photo of a", "n_ctx": 4, "batch_size": 1, "epochs": 10}


@dataclass(frozen=True)
class CoCoOp(PromptTuning):
    """Zhou et al., CVPR 2022, arXiv:2203.05557; code KaiyangZhou/CoOp.

    A network h of two layers, trained too, moves all tokens of the context by the same vector:

        z_c = s · ⟨x, w_c(v + h(x))⟩,   loss = mean -log softmax(z)_y

    Each picture has class features of its own: B·C prompts in a step, where the authors take one picture at a time.
    """

    epochs: int = 10
    batch_size: int | None = 8

    name: ClassVar[str] = "cocoop"
    title: ClassVar[str] = "CoCoOp"
    year: ClassVar[int | None] = 2022
    trains: ClassVar[str] = "context tokens, and a network that moves them for each picture"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        # configs/trainers/CoCoOp/vit_b16_c4_ep10_batch1_ctxv1.yaml, of both base2new_train.sh and xd_train.sh; 16 shots
        "vit-b16-base-to-new": _AUTHORS,
        "vit-b16-cross-dataset": _AUTHORS,
    }

    def context(self, learner: PromptTuningLearner) -> Context:
        """The context and the network that moves it."""
        return PerPicture(learner.net.prompt.ctx, learner.n_features)
