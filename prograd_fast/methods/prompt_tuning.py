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
from prograd_fast.clip.tokens import readable_class_names
from prograd_fast.losses import DualLoss
from prograd_fast.methods.base import GradientLearner, GradientMethod, Losses, Scores, Task
from prograd_fast.methods.context import Context, context_logits
from prograd_fast.optim import ProGradSGD
from prograd_fast.optim.rules import Rule

WORDS = "a picture of a"
PROMPTS_AT_ONCE = 4096  # bounds the memory of scoring with prompts of each picture's own


class Step(NamedTuple):
    """What the terms of a loss are computed from.

    Attributes:
        image_features: (B, D) unit rows.
        labels: (B,) int64.
        class_features: (..., K, D) unit rows: for each picture and sample, if they differ, those of the C classes, then
            those of the extra names, as `PromptTuningLearner.rows_of` tells.
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

    def wrong_answers(self) -> Sequence[str]:
        """Those of them that the pictures are told apart from as well."""
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

    def memory(self, learner: "PromptTuningLearner") -> dict[str, Tensor]:
        """What must be kept from epoch to epoch, at the start."""
        return {}

    def epoch_ended(self, learner: "PromptTuningLearner", epoch: int) -> None:
        """See `GradientLearner`."""


class PromptTuningLearner(GradientLearner):
    """A context under training.

    Attributes:
        settings: the method's settings.
        class_names: readable names of the task's classes and the wrong answers: the columns of the logits.
        n_features: width D of the features.
        net: the network over these and the extra names.
        context: what is tuned; `context.ctx` is `net.prompt.ctx`.
    """

    settings: PromptTuning

    def __init__(self, settings: PromptTuning, task: Task):
        self.settings = settings
        self.task = task
        self.n_features = task.image_features.shape[1]
        self.class_names = all_names(task.class_names, settings.wrong_answers())
        self._rows = {name: i for i, name in enumerate(all_names(self.class_names, settings.extra_names()))}
        self.generator = torch.Generator(task.device).manual_seed(task.seed)
        with torch.random.fork_rng():
            torch.manual_seed(task.seed)
            self.net = PromptedCLIP(
                task.model,
                task.tokenizer,
                tuple(self._rows),
                settings.n_ctx,
                settings.ctx_init,
                max_memory=task.max_memory,
            )
            self.module = self.context = settings.context(self)
        self.memory = settings.memory(self)
        self.criterion = DualLoss(settings.temperature)
        self.terms = dict(settings.terms(self)) if len(task.labels) else {}
        self.optimizer = self.new_optimizer()

    @cached_property
    def teacher(self) -> ZeroShotTeacher:
        """Zero-shot CLIP over the task's classes."""
        return ZeroShotTeacher(self.task.model, self.task.tokenizer, self.class_names, self.settings.teacher_templates)

    def rows_of(self, names: Sequence[str]) -> Tensor:
        """(len(names),) int64: which class features of a step are those of these classes and extra names."""
        return torch.tensor([self._rows[name] for name in names], device=self.task.device)

    @torch.no_grad()
    def set_parameters(self, values: Tensor) -> None:
        """Copy a vector, as of `torch.nn.utils.parameters_to_vector`, into what is tuned."""
        parameters = list(self.module.parameters())
        for p, value in zip(parameters, values.split([p.numel() for p in parameters]), strict=True):
            p.copy_(value.view_as(p))

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
        noise = self.context.noise(len(x), self.generator)
        features = self.context.class_features(self.net, x, noise)
        logits = context_logits(self.net, x, features[..., : len(self.class_names), :])
        step = Step(x, labels, features, logits)
        general = None
        if self.settings.lambda_ is None:
            entropy = F.cross_entropy(logits, labels)
        else:
            entropy, general = self.criterion(logits, self.teacher.logits(x), labels)
        terms = {"cross_entropy": entropy, **{name: term(step) for name, term in self.terms.items()}}
        total = torch.stack(list(terms.values())).sum() if len(terms) > 1 else entropy
        return Losses(total, general, {name: term.detach() for name, term in terms.items()})

    @torch.no_grad()
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
        """The context before these class names, which are encoded once, here, unless they depend on the picture.

        What is random is drawn once, from the task's seed, for all pictures.
        """
        net, context = self.net.with_classes(class_names), self.context
        noise = context.noise(1, torch.Generator(self.task.device).manual_seed(self.task.seed))
        if not context.per_picture:
            features = context.class_features(net, self.task.image_features, noise)
            return lambda image_features: context_logits(net, image_features.to(features.dtype), features)
        n = max(1, PROMPTS_AT_ONCE // (len(net.class_names) * (1 if noise is None else len(noise))))

        @torch.no_grad()
        def scores(image_features: Tensor) -> Tensor:
            parts = image_features.to(context.ctx.dtype).split(n)
            return torch.cat([context_logits(net, x, context.class_features(net, x, noise)) for x in parts])

        return scores


def all_names(class_names: Sequence[str], others: Sequence[str]) -> tuple[str, ...]:
    """The class names, readable, and then those of the others that are not among them."""
    names = readable_class_names(class_names)
    return tuple(dict.fromkeys([*names, *(readable_class_names(others) if others else ())]))
