"""Prompt tuning: the words before the class name are trained. Methods differ in the context, the loss terms, and λ."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from prograd_fast.clip import PromptedCLIP, ZeroShotTeacher, save_prompt
from prograd_fast.clip.tokens import readable_class_names
from prograd_fast.functional import sampled_cross_entropy
from prograd_fast.losses import DualLoss
from prograd_fast.methods.base import GradientLearner, GradientMethod, Losses, Scores, Task, count_correct
from prograd_fast.methods.class_features import Context, mean_logits, sample_logits
from prograd_fast.methods.templates import check_templates
from prograd_fast.optim import ProGradSGD
from prograd_fast.optim.rules import Rule

WORDS = "a picture of a"
WORTH_SAVING = 2**23  # numbers that are not stored, 32 MiB in float32: `PromptTuningLearner._picture_losses`
WORTH_SHARING = 1.5e8  # weights of the text tower times class names: `PromptTuningLearner._pays_to_share`
PROMPTS_AT_ONCE = 4096  # bounds the memory of scoring with prompts of each picture's own


@dataclass(frozen=True)
class Step:
    """The tensors that the terms of a loss are computed from.

    Attributes:
        net: whose logit scale and bias count.
        n_classes: C, the number of logits.
        image_features: (B, D) unit rows.
        labels: (B,) int64.
        class_features: (..., K, D) unit rows: for each picture and sample, if they differ, those of the C classes, then
            those of the extra names, as `PromptTuningLearner.rows_of` tells.
        seen_by_teacher: (B, D') unit rows; the image features themselves without `Task.teacher`.
    """

    net: PromptedCLIP
    n_classes: int
    image_features: Tensor
    labels: Tensor
    class_features: Tensor
    seen_by_teacher: Tensor

    @cached_property
    def sample_logits(self) -> Tensor:
        """(B, C), or (S, B, C) for S samples; computed when a loss first asks for it."""
        return sample_logits(self.net, self.image_features, self.class_features[..., : self.n_classes, :])

    @cached_property
    def logits(self) -> Tensor:
        """(B, C), of the mean prediction of the samples."""
        return mean_logits(self.sample_logits)


Term = Callable[[Step], Tensor]  # a summand of the task loss, 0-d, weighted


@dataclass(frozen=True)
class PromptTuning(GradientMethod):
    """Settings of prompt tuning, and the places where a method puts what is its own: `context`, `terms`, `rule`.

    Methods combine: `lambda_` is ProGrad in any of them, and a class that inherits from two has the terms of both.

    `lr` was chosen on validation pictures of emoji's base classes, for an earlier emoji-lite; `docs/settings.md` has
    a scan. The defaults do not carry over: OpenAI's CLIP has a text tower four times as wide and a higher logit scale.
    With it the authors use lr 0.002, momentum 0.9, weight decay 5e-4 and mini-batches of 32 for 50 to 200 epochs.

    Attributes:
        ctx_init: Words before the class name, where the tuned context starts; None: a random start.
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

    trains: ClassVar[str] = "context tokens"
    keeps: ClassVar[str] = "class names in the prompts"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_templates(self.templates)

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

    def extra_logit_names(self) -> Sequence[str]:
        """The extra names that also get a logit, as wrong answers for the pictures."""
        return ()

    def net(self, task: Task, class_names: Sequence[str]) -> PromptedCLIP:
        """The network over these names, whose context is where training starts."""
        return PromptedCLIP(
            task.model, task.tokenizer, class_names, self.n_ctx, self.ctx_init, max_memory=task.max_memory
        )

    def context(self, learner: "PromptTuningLearner") -> Context:
        """The module that holds `learner.net.prompt.ctx` and whatever else is trained."""
        return Context(learner.net.prompt.ctx)

    def terms(self, learner: "PromptTuningLearner") -> Mapping[str, Term]:
        """Return the terms that are added to the cross-entropy; called once."""
        return {}

    def rule(self, learner: "PromptTuningLearner") -> Rule | None:
        """The optimizer's rule, None for ProGrad's with `lambda_`; called at the start of each stage."""
        return None

    def memory(self, learner: "PromptTuningLearner") -> dict[str, Tensor]:
        """Return the tensors that are kept from epoch to epoch, as they are at the start."""
        return {}

    def epoch_ended(self, learner: "PromptTuningLearner", epoch: int) -> None:
        """See `GradientLearner`."""


class PromptTuningLearner(GradientLearner):
    """A context under training.

    Attributes:
        settings: the method's settings.
        class_names: readable names of the task's classes and of the extra names with a logit: the logits' columns.
        n_features: width D of the features.
        net: the network over these and the extra names.
        scale: exp of the model's `logit_scale`.
        context: what is tuned; `context.ctx` is `net.prompt.ctx`.
    """

    settings: PromptTuning

    def __init__(self, settings: PromptTuning, task: Task):
        self.settings = settings
        self.task = task
        self.n_features = task.image_features.shape[1]
        self.class_names = all_names(task.class_names, settings.extra_logit_names())
        names = all_names(self.class_names, settings.extra_names())
        self._rows = {name: i for i, name in reversed([*enumerate(names)])}  # of equal names the first one's
        self.generator = torch.Generator(task.device).manual_seed(task.seed)
        with torch.random.fork_rng():
            torch.manual_seed(task.seed)
            self.net = settings.net(task, names)
            self.module = self.context = settings.context(self)
        self.shares_classes = self._pays_to_share(len(names))
        if self.shares_classes:
            self.net = self.net.with_classes(names, dist.group.WORLD)
        self.memory = settings.memory(self)
        self.criterion = DualLoss(settings.temperature)
        self.scale = float(self.net.model.logit_scale.exp())
        self.terms = dict(settings.terms(self)) if len(task.labels) else {}
        self.optimizer = self.new_optimizer()

    def _pays_to_share(self, n_names: int) -> bool:
        """Whether several ranks train this context, and save more if they share the classes than the pictures.

        With w weights in the text tower, the forward of a class and its backward for two cotangents take 6·w
        operations for each row of its prompt, three or more. Both losses of B pictures take 8·B·D for each class. What
        the ranks tell each other has to be less than what they save: with emoji-lite (6e5 weights) two processes of one
        thread each take 0.63 times the processor's time of one with 256 names, and 0.86 times with 64, on an AMD EPYC
        (family 25, model 17).
        """
        together = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        n_pictures, tower = len(self.task.labels), self.net.tower
        if not together or not n_pictures or self.context.per_picture:
            return False
        n_pictures = min(self.settings.batch_size or n_pictures, n_pictures)
        blocks = getattr(tower.text, "transformer", tower.text)
        weights = sum(p.numel() for p in blocks.parameters() if p is not tower.embedding.weight)
        return n_names * weights >= WORTH_SHARING and 8 * n_pictures * self.n_features <= 18 * weights

    @cached_property
    def teacher(self) -> ZeroShotTeacher:
        """Zero-shot CLIP over the task's classes: the student's own untouched model."""
        return ZeroShotTeacher(self.task.model, self.task.tokenizer, self.class_names, self.settings.teacher_templates)

    @cached_property
    def general_teacher(self) -> ZeroShotTeacher:
        """The one that the general loss compares with: that of `Task.teacher`, or `teacher`."""
        other = self.task.teacher
        if other is None:
            return self.teacher
        return ZeroShotTeacher(other.model, other.tokenizer, self.class_names, self.settings.teacher_templates)

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
        lambda_ = 1.0 if self.settings.lambda_ is None else self.settings.lambda_
        return self.new_sgd(self.module.parameters(), lambda_=lambda_, rule=self.settings.rule(self))

    def losses(self, image_features: Tensor, labels: Tensor) -> Losses:
        """Cross-entropy and the method's terms; and the KL divergence to the teacher, unless λ is None."""
        x, seen = self.seen(image_features, self.context.ctx.dtype)
        features = self.context.class_features(self.net, x, self.context.noise(len(x), self.generator))
        step = Step(self.net, len(self.class_names), x, labels, features, seen)
        entropy, general = self._picture_losses(step)
        terms = {"cross_entropy": entropy, **{name: term(step) for name, term in self.terms.items()}}
        total = torch.stack(list(terms.values())).sum() if len(terms) > 1 else entropy
        return Losses(total, general, {name: term.detach() for name, term in terms.items()}, self._correct(step))

    def _picture_losses(self, step: Step) -> tuple[Tensor, Tensor | None]:
        """The cross-entropy of the pictures; and the KL divergence to the teacher, unless λ is None.

        Where all pictures share the class features, both losses can be computed from the features, without ever storing
        the logits. With B pictures, C classes and width D, that takes 2·C·D numbers (cotangents of the class features)
        instead of 4·B·C (logits and their cotangents). Measured on a CPU core with D = 512, B = 32 ... 16384 and
        C = 10 ... 21841, it takes about the same time, since matrix products dominate: 0.8 times at B = 4096 and
        C = 1000, with 11 MB instead of 87 MB. So memory decides, from `WORTH_SAVING` on.
        """
        x, labels, features = step.image_features, step.labels, step.class_features
        if self.settings.lambda_ is None:
            samples = step.sample_logits.ndim == 3
            return (sampled_cross_entropy if samples else F.cross_entropy)(step.sample_logits, labels), None
        saved = (4 * len(x) - 2 * self.n_features) * step.n_classes
        alike = step.seen_by_teacher is x
        if saved > WORTH_SAVING and features.ndim == 2 and alike and not x.requires_grad:
            classes = features[: step.n_classes]
            return self.criterion.from_features(x, classes, self.teacher.class_features, labels, self.scale)
        return self.criterion(step.logits, self.general_teacher.logits(step.seen_by_teacher), labels)

    @torch.no_grad()
    def _correct(self, step: Step) -> Tensor | None:
        """How many pictures have their label as the largest logit; called after all losses, which need a graph."""
        if self.settings.lambda_ is not None:
            return self.criterion.correct
        return count_correct(step.logits, step.labels)

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
    def class_features(self, class_names: Sequence[str]) -> Tensor:
        """(C, D) unit rows of these classes, or (S, 1, C, D) for S samples, which are those of `scores`.

        Raises:
            ValueError: they depend on the picture.
        """
        if self.context.per_picture:
            raise ValueError(
                f"{self.settings.title} has other class features for every picture, so they are no matrix; use the run "
                "itself: prograd-fast predict, or prograd_fast.training.open_run"
            )
        return self.context.class_features(
            self.net.with_classes(class_names), self.task.image_features, self.fixed_noise()
        )

    def fixed_noise(self) -> Tensor | None:
        """The random numbers of `scores`: drawn from the task's seed, the same at every call."""
        return self.context.fixed_noise(torch.Generator(self.task.device).manual_seed(self.task.seed))

    @torch.no_grad()
    def scores(self, class_names: Sequence[str]) -> Scores:
        """The context before these class names, which are encoded once, here, unless they depend on the picture.

        What is random is drawn once, from the task's seed, for all pictures.
        """
        context = self.context
        if not context.per_picture:
            features = self.class_features(class_names)
            return lambda x: mean_logits(sample_logits(self.net, x.to(features.dtype), features))
        net, noise = self.net.with_classes(class_names), self.fixed_noise()
        n = max(1, PROMPTS_AT_ONCE // (len(net.class_names) * (1 if noise is None else len(noise))))

        @torch.no_grad()
        def scores(image_features: Tensor) -> Tensor:
            parts = image_features.to(context.ctx.dtype).split(n)
            logits = (sample_logits(net, x, context.class_features(net, x, noise)) for x in parts)
            return torch.cat([mean_logits(part) for part in logits])

        return scores


def all_names(class_names: Sequence[str], others: Sequence[str]) -> tuple[str, ...]:
    """The class names, readable, and then those of the others that are not among them."""
    names = readable_class_names(class_names)
    own, new = set(names), dict.fromkeys(readable_class_names(others) if others else ())
    return (*names, *(name for name in new if name not in own))
