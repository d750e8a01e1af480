"""TCP: what the untouched model says of a class takes the place of the context in a later block of the tower."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from prograd_fast.clip import PromptedCLIP, ZeroShotTeacher
from prograd_fast.methods.class_features import Context
from prograd_fast.methods.kgcoop import KgCoOp
from prograd_fast.methods.presets import COOP
from prograd_fast.methods.prompt_tuning import PromptTuningLearner
from prograd_fast.methods.templates import TCP as TEMPLATES
from prograd_fast.methods.templates import by_set

RELEASED: Mapping[str, Any] = {**COOP, "n_ctx": 4, "epochs": 50, "block": 8}


class QuickGELU(nn.Module):
    """OpenAI's x·σ(1.702·x)."""

    def forward(self, x: Tensor) -> Tensor:
        """Of the same shape."""
        return x * torch.sigmoid(1.702 * x)


class ClassTokens(Context):
    """The context, and a network that makes M tokens of each class from its fixed feature w.

    t_c = W2 q(W1 w_c + b1) + b2, M·d numbers, with q `QuickGELU` and D/4 units between.

    Args:
        ctx: (M, d).
        n_features: D.
        block: before which block the tokens take the place of the context.
        fixed: the fixed features (C, D) of some names, unit rows.
    """

    def __init__(
        self, ctx: nn.Parameter, n_features: int, block: int, fixed: Callable[[Sequence[str]], Tensor]
    ) -> None:
        super().__init__(ctx)
        hidden = max(1, n_features // 4)
        self.meta_net = nn.Sequential(nn.Linear(n_features, hidden), QuickGELU(), nn.Linear(hidden, ctx.numel()))
        self.meta_net.to(ctx)
        self.block = block
        self._fixed = fixed
        self._known: dict[tuple[str, ...], Tensor] = {}

    def tokens(self, class_names: tuple[str, ...]) -> Tensor:
        """(C, M, d)."""
        if class_names not in self._known:  # those that are trained on, and those that were last asked for
            first = dict([*self._known.items()][:1])
            self._known = first | {class_names: self._fixed(class_names).to(self.ctx)}
        return self.meta_net(self._known[class_names]).unflatten(1, self.ctx.shape)

    def class_features(self, net: PromptedCLIP, image_features: Tensor, noise: Tensor | None) -> Tensor:
        """(C, D)."""
        return net.class_features(self.ctx, self.tokens(net.class_names), before=self.block)


@dataclass(frozen=True)
class TCP(KgCoOp):
    """Yao et al., CVPR 2024, arXiv:2311.18231; code htyao89/Textual-based_Class-aware_prompt_tuning.

    The loss is KgCoOp's, with features f_c of the prompts and t_c of the teacher:

        loss = CE + w · (1 - mean over c of cos(f_c, t_c))

    Before one block of the text tower, tokens of each class take the place of the context. `ClassTokens` makes them
    from the teacher's feature of the class, for new classes as for those that it was trained on.

    The authors' code has 4 tokens and inserts them before its ninth block whatever the tower, so that a tower of fewer
    blocks never sees them. They train with Adam (eps 1e-3); here, as in all methods, it is SGD.

    Attributes:
        block: The block, counted from 0, before which the class tokens come in: 1 or later. None: two thirds of the
            way through the tower, the authors' 8 of 12.

    Raises:
        ValueError: `block` is not in the tower, or its blocks cannot be reached (told by `start`).
    """

    block: int | None = None

    name: ClassVar[str] = "tcp"
    title: ClassVar[str] = "TCP"
    year: ClassVar[int | None] = 2024
    trains: ClassVar[str] = "context tokens, and a network that makes tokens of each class from its text feature"
    keeps: ClassVar[str] = "class features near those of hand-written prompts"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {  # configs/trainers/TCP and scripts; their rate is Adam's
        "vit-b16-base-to-new": RELEASED,
        "vit-b16-base-to-new-imagenet-sun": {**RELEASED, "epochs": 25},
    }
    set_settings: ClassVar[Mapping[str, Mapping[str, Any]]] = by_set(TEMPLATES)
    differs: ClassVar[str] = (
        "The authors train with Adam (ε 1e-3), SGD is used here; their prompts have words of the set behind the name."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.block is not None and self.block < 1:
            raise ValueError(f"block must be 1 or more, or None, got {self.block}")

    def context(self, learner: PromptTuningLearner) -> Context:
        """The context and the network of the class tokens."""
        tower = learner.net.tower
        if tower.full_length_reason is not None:
            raise ValueError(
                f"block: expected a causal text tower that pools at end of text, but {tower.full_length_reason}. Take "
                "a method without class tokens, such as kgcoop, or another model, such as ViT-B-32."
            )
        n_blocks = tower.n_layers
        block = 2 * n_blocks // 3 if self.block is None else self.block
        if not 1 <= block < n_blocks:
            raise ValueError(
                f"block: expected a block of the text tower behind the first, from 1 to {n_blocks - 1}, got {block}; "
                f"the tower has {n_blocks}. Give another block, or take a method without class tokens, such as kgcoop."
            )
        task = learner.task

        def fixed(class_names: Sequence[str]) -> Tensor:
            return ZeroShotTeacher(task.model, task.tokenizer, class_names, self.teacher_templates).class_features

        return ClassTokens(learner.net.prompt.ctx, learner.n_features, block, fixed)
