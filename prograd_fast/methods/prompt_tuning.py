"""How the words before the class name are tuned. The methods differ in the context, the terms of the loss, and λ."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from prograd_fast.clip import PromptedCLIP, ZeroShotTeacher, save_prompt
from prograd_fast.losses import DualLoss
from prograd_fast.methods.base import GradientLearner, GradientMethod, Losses, Scores, Task
from prograd_fast.methods.context import Context
from prograd_fast.optim import ProGradSGD
from prograd_fast.rules import Rule

WORDS = "a picture of a"


class Step(NamedTuple):
    """What the terms of a loss are computed from.

    Attributes:
        image_features: (B, D) unit rows.
        labels: (B,) int64.
        class_features: (C + E, D) unit rows, those of the task's classes and of the E extra names; or (G, C + E, D).
        logits: (B, C).
    """

    image_features: Tensor
    labels: Tensor
    class_features: Tensor
    logits: Tensor


Term = Callable[[Step], Tensor]  # a summand of the task loss, 0-d, weighted


@dataclass(frozen=True)
class PromptTuning(GradientMethod):
    """Settings of prompt tuning, and the places where a method puts what is its own: `context`, `terms`, `rule`.

    Methods combine: `lambda_` is ProGrad in any of them, and a class that inherits from two has the terms of both.

    `lr` was chosen on validation pictures of emoji's base classes, for emoji-lite: `docs/settings.md` has the scan. The
    defaults do not carry over: OpenAI's CLIP has a text tower four times as wide and a logit scale five times as high.
    With it the authors use lr 0.002, momentum 0.9, weight decay 5e-4 and mini-batches of 32 for 50 to 200 epochs.

    Attributes:
        ctx_init: Words before the class name, as which the tuned context starts; None: a random start.
        n_ctx: Number of context tokens; None: as many as `ctx_init` has. Rows before the words start at zero.
        templates: The teacher's prompts, `{}` stands for the class name; empty: "`ctx_init` {}.".
        lambda_: Share of the conflict with the teacher that is removed from the task gradient. 0: the conflict is
            measured, for the run record, and never acted upon. None: it is not measured either, which saves half of the
            backward.
        temperature: Temperature of the KL loss to the teacher.

    Raises:
        ValueError: a setting is out of range; words and number of tokens are checked by `start`.
    """

    ctx_init: str | None = WORDS
    n_ctx: int | None = None
    templates: tuple[str, ...] = ()
    lambda_: float | None = None
    temperature: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for template in self.templates:
            if template.count("{}") != 1:
                raise ValueError(f"templates: expected exactly one {{}} for the class name, got {template!r}")

    @property
    def teacher_templates(self) -> tuple[str, ...]:
        """The teacher's prompts."""
        return self.templates or (f"{self.ctx_init or WORDS} {{}}.",)

    def start(self, task: Task) -> "PromptTuningLearner":
        """Build network, context and optimizer."""
        return PromptTuningLearner(self, task)

    # ---- what a method has of its own

    def extra_names(self) -> Sequence[str]:
        """Class names without pictures that the terms need the features of."""
        return ()

    def context(self, learner: "PromptTuningLearner") -> Context:
        """The module that holds `learner.net.prompt.ctx` and whatever else is trained."""
        return Context(learner.net.prompt.ctx)

    def terms(self, learner: "PromptTuningLearner") -> Mapping[str, Term]:
        """What is added to the cross-entropy; called once."""
        return {}

    def rule(self, learner: "PromptTuningLearner") -> Rule | None:
        """The optimizer's rule, None for ProGrad's with `lambda_`; called at the start of each stage."""
        return None

    def epoch_ended(self, learner: "PromptTuningLearner", epoch: int) -> None:
        """See `GradientLearner`."""


class PromptTuningLearner(GradientLearner):
    """A context under training.

    Attributes:
        settings: the method's settings.
        net: the network over the task's classes and the extra names.
        context: what is tuned; `context.ctx` is `net.prompt.ctx`.
    """

    settings: PromptTuning

    def __init__(self, settings: PromptTuning, task: Task):
        self.settings = settings
        self.task = task
        self.n_classes = len(task.class_names)
        self.generator = torch.Generator(task.device).manual_seed(task.seed)
        self.memory = {}
        with torch.random.fork_rng():
            torch.manual_seed(task.seed)
            names = [*task.class_names, *settings.extra_names()]
            self.net = PromptedCLIP(task.model, task.tokenizer, names, settings.n_ctx, settings.ctx_init)
            self.module = self.context = settings.context(self)
        self.criterion = DualLoss(settings.temperature)
        self.terms = dict(settings.terms(self)) if len(task.labels) else {}
        self.optimizer = self.new_optimizer()

    @cached_property
    def teacher(self) -> ZeroShotTeacher:
        """Zero-shot CLIP over the task's classes."""
        return ZeroShotTeacher(
            self.task.model, self.task.tokenizer, self.task.class_names, self.settings.teacher_templates
        )

    def new_optimizer(self) -> ProGradSGD:
        """SGD over everything that is tuned, the context first."""
        settings = self.settings
        return ProGradSGD(
            self.module.parameters(),
            lr=settings.lr,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
            lambda_=1.0 if settings.lambda_ is None else settings.lambda_,
            rule=settings.rule(self),
        )

    def losses(self, image_features: Tensor, labels: Tensor) -> Losses:
        """Cross-entropy and the method's terms; and the KL divergence to the teacher, unless λ is None."""
        x = image_features.to(self.context.ctx.dtype)
        features = self.net.class_features(self.context(x))
        logits = self.logits(x, features[..., : self.n_classes, :])
        step = Step(x, labels, features, logits)
        general = None
        if self.settings.lambda_ is None:
            entropy = F.cross_entropy(logits, labels)
        else:
            entropy, general = self.criterion(logits, self.teacher.logits(x), labels)
        terms = {"cross_entropy": entropy, **{name: term(step) for name, term in self.terms.items()}}
        total = torch.stack(list(terms.values())).sum() if len(terms) > 1 else entropy
        return Losses(total, general, {name: term.detach() for name, term in terms.items()})

    def logits(self, image_features: Tensor, class_features: Tensor) -> Tensor:
        """(B, C) logits from (B, D) image features and the class features of their contexts."""
        return self.net.logits(image_features, class_features)

    def epoch_ended(self, epoch: int) -> None:
        """See `GradientLearner`."""
        self.settings.epoch_ended(self, epoch)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take up what `state_dict` gave, a later stage's optimizer included."""
        super().load_state_dict(state)
        self.optimizer = self.new_optimizer()

    def save(self, path: Path, **metadata: Any) -> None:
        """Write a file that `prograd_fast.clip.load_prompt` reads, too."""
        net = self.net.with_classes(self.task.class_names)  # without the extra names
        save_prompt(path, net, self.module.state_dict(), **metadata)

    @torch.no_grad()
    def scores(self, class_names: Sequence[str]) -> Scores:
        """The context before these class names, which are encoded once, here."""
        net = self.net.with_classes(class_names)
        features = net.class_features()
        return lambda image_features: net.logits(image_features, features)
