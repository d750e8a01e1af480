"""AnchorOPT: a token that was learned from descriptions stands among the context, in places that are learned too."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from prograd_fast.clip import PromptedCLIP, ZeroShotTeacher
from prograd_fast.clip.context import initial_context
from prograd_fast.clip.layout import PromptLayout
from prograd_fast.clip.prompt_encoder import PromptEncoder
from prograd_fast.clip.tokens import readable_class_names
from prograd_fast.methods import templates
from prograd_fast.methods.base import Losses, Task, count_correct
from prograd_fast.methods.class_features import Context
from prograd_fast.methods.presets import COOP
from prograd_fast.methods.prompt_tuning import PromptTuning, PromptTuningLearner, Step
from prograd_fast.optim import ProGradSGD

_COLUMNS = ("anchor_epochs", "anchor_weight", "n_ctx", "epochs", "entropy_weight", "kd_weight", "kd_temperature")
_TABLE = {  # docs/AnchorOPT.md, by data set
    "imagenet": (10, 1000.0, 6, 20, 100.0, 1000.0, 1.0), "caltech": (100, 1000.0, 4, 100, 100.0, 1000.0, 2.0),
    "pets": (100, 1000.0, 4, 100, 100.0, 1000.0, 1.0), "cars": (40, 100.0, 8, 100, 100.0, 100.0, 4.0),
    "flowers": (100, 1000.0, 4, 100, 100.0, 100.0, 2.0), "food": (20, 1000.0, 4, 20, 100.0, 1000.0, 4.0),
    "aircraft": (20, 1000.0, 4, 100, 100.0, 1.0, 4.0), "sun": (20, 1000.0, 8, 20, 100.0, 1.0, 2.0),
    "dtd": (100, 1000.0, 4, 100, 100.0, 10.0, 4.0), "eurosat": (100, 1000.0, 4, 100, 1.0, 0.0, 1.0),
    "ucf": (100, 1000.0, 8, 100, 100.0, 1000.0, 1.0),
}  # fmt: skip
MOST_ANCHORS = 16


class AnchoredContext(Context):
    """M context tokens, A anchor tokens a, and logits Π of the token in each of n = M + A places.

    S = softmax((Π + G)/τ) row by row, with Gumbel noise G; H has a one where S has a row's largest entry; and

        q = (H - stop(S) + S) [ctx; a]

    so that each place holds one token, and Π gets the gradient of the mixture. Rows are independent: a token may stand
    in several places, or in none.

    Args:
        ctx: (M, d).
        settings: A, τ, and what is done at the test.
    """

    def __init__(self, ctx: nn.Parameter, settings: "AnchorOPT") -> None:
        super().__init__(ctx)
        self.settings = settings
        n = len(ctx) + settings.n_anchor
        self.anchor = nn.Parameter(0.02 * torch.randn(settings.n_anchor, ctx.shape[1]).to(ctx))
        self.place_logits = nn.Parameter(torch.randn(n, n).to(ctx))
        self._encoders: WeakKeyDictionary[PromptedCLIP, tuple[Tensor, PromptEncoder, PromptEncoder]]
        self._encoders = WeakKeyDictionary()

    def noise(self, n_pictures: int, generator: torch.Generator) -> Tensor:
        """G, (n, n): the same for all pictures."""
        options: dict[str, Any] = {"generator": generator, "device": generator.device, "dtype": self.ctx.dtype}
        return -(-torch.rand(self.place_logits.shape, **options).log()).log()

    def fixed_noise(self, generator: torch.Generator) -> Tensor | None:
        """None: each place has its most likely token; unless there shall be noise."""
        return self.noise(1, generator) if self.settings.noise_at_test else None

    def places(self, noise: Tensor | None) -> Tensor:
        """(n, n): H, with the gradient of S."""
        logits = self.place_logits if noise is None else self.place_logits + noise
        soft = (logits / self.settings.temperature).softmax(1)
        hard = torch.zeros_like(soft).scatter_(1, soft.argmax(1, keepdim=True), 1.0)
        return hard - soft.detach() + soft

    def class_features(self, net: PromptedCLIP, image_features: Tensor, noise: Tensor | None) -> Tensor:
        """(C, D), of "q name.", whatever the pictures; the anchor gets no gradient."""
        _, _, encoder = self._of(net)
        rows = self.places(noise) @ torch.cat([self.ctx, self.anchor.detach()])
        return encoder(rows[None], unit=True)[0]

    def anchor_features(self, net: PromptedCLIP) -> Tensor:
        """(C, D) unit rows, of "a of name."."""
        of, encoder, _ = self._of(net)
        return encoder(torch.cat([self.anchor, of])[None], unit=True)[0]

    def _of(self, net: PromptedCLIP) -> tuple[Tensor, PromptEncoder, PromptEncoder]:
        """The rows of "of", and the encoders of both prompts for the classes of a net."""
        if net not in self._encoders:
            words, _ = initial_context(net.tokenizer, net.tower, None, "of", None)
            n_anchor, early = len(self.anchor), self.settings.read_early
            first = self._encoder(net, n_anchor + len(words))
            second = self._encoder(net, len(self.place_logits), n_anchor if early else 0)
            self._encoders[net] = words.detach().to(self.ctx), first, second
        return self._encoders[net]

    def _encoder(self, net: PromptedCLIP, n_rows: int, early: int = 0) -> PromptEncoder:
        _, ids = initial_context(net.tokenizer, net.tower, None, self.ctx.new_zeros(n_rows, self.ctx.shape[1]), None)
        layout = PromptLayout.of(net.tokenizer, net.tower, net.class_names, ids)
        group = None if net.encoder.share is None else dist.group.WORLD
        places = layout.token_ids, layout.context_positions
        return PromptEncoder(net.tower, *places, False, net.encoder.max_memory, group, early)


@dataclass(frozen=True)
class AnchorOPT(PromptTuning):
    """Li et al. 2025, arXiv:2511.21188; code zhengli97/ATPrompt, on CoOp.

    The first stage learns the anchor: with unit features f_c of "a of name." and g_ck of sentence k about class c, its
    loss is anchor_weight · mean over c, k and D of (f_c - g_ck)². Pictures play no part. The second stage learns what
    `AnchoredContext` puts before the name. With its logits z = s·x·u(T(q name.)), z̄ = s·x·f and r = (z + z̄)/2, which
    gets no gradient, the loss is

        entropy_weight · CE(z, y) + kd_weight · Tk² · mean over B·C of p_r (log p_r - log p_z),   p = softmax(·/Tk)

    The classes that it was trained on are told by z, any list with others by (z + z̄)/2.

    The authors let a language model describe each class; here the same sentences are written for all of them. Their
    code draws noise at the test, per batch, and reads the features A positions before the end of text.

    Attributes:
        n_anchor: A, anchor tokens.
        descriptions: The sentences of the first stage, `{}` stands for the class name.
        anchor_epochs: Epochs of the first stage, which has the schedule of a run of its own.
        anchor_weight: See above.
        entropy_weight: See above; 100 in most of the published settings.
        kd_weight: See above.
        kd_temperature: Tk.
        gumbel_temperature: τ.
        noise_at_test: Whether noise is drawn at the test as well: once, from the task's seed.
        read_early: Whether features are read A positions before the end of text, as in the authors' code.

    Raises:
        ValueError: a setting is out of range.
    """

    n_anchor: int = 1
    descriptions: tuple[str, ...] = templates.SELECTED
    anchor_epochs: int = 50
    anchor_weight: float = 1000.0
    entropy_weight: float = 1.0
    kd_weight: float = 1.0
    kd_temperature: float = 1.0
    gumbel_temperature: float = 1.0
    noise_at_test: bool = False
    read_early: bool = False

    name: ClassVar[str] = "anchoropt"
    title: ClassVar[str] = "AnchorOPT"
    year: ClassVar[int | None] = 2025
    trains: ClassVar[str] = "an anchor token, then context tokens and the places of all"
    keeps: ClassVar[str] = "the anchor, and predictions near the anchor's"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        f"vit-b16-base-to-new-{data}": {**COOP, **dict(zip(_COLUMNS, row, strict=True))} for data, row in _TABLE.items()
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.n_anchor <= MOST_ANCHORS:
            raise ValueError(f"n_anchor must be 1 or more, and {MOST_ANCHORS} at most, got {self.n_anchor}")
        if self.anchor_epochs < 1:
            raise ValueError(f"anchor_epochs must be 1 or more, got {self.anchor_epochs}")
        for name in ("anchor_weight", "entropy_weight", "kd_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be 0 or more, got {getattr(self, name)}")
        for name in ("kd_temperature", "gumbel_temperature"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        if not self.descriptions or any(sentence.count("{}") != 1 for sentence in self.descriptions):
            raise ValueError(
                f"descriptions: expected sentences with one {{}} for the class name each, got {self.descriptions!r}"
            )

    def stages(self) -> tuple[int, ...]:
        """The anchor, then the context and the places."""
        return (self.anchor_epochs, self.epochs)

    def start(self, task: Task) -> "AnchorOPTLearner":
        """Build network, context, anchor and optimizer."""
        return AnchorOPTLearner(self, task)

    def context(self, learner: PromptTuningLearner) -> Context:
        """The context, the anchor and their places."""
        return AnchoredContext(learner.net.prompt.ctx, self)


class AnchorOPTLearner(PromptTuningLearner):
    """An anchor under training, then a context around it.

    Attributes:
        anchored: whether the anchor is learned, and the second stage goes on.
    """

    settings: AnchorOPT
    context: AnchoredContext
    anchored = False

    def __init__(self, settings: AnchorOPT, task: Task) -> None:
        super().__init__(settings, task)
        self._fixed: Tensor | None = None  # g, then f: the features that do not change within a stage
        if len(task.labels):
            self._fixed = torch.stack([self._described(sentence) for sentence in settings.descriptions], 1)

    def _described(self, sentence: str) -> Tensor:
        task = self.task
        return ZeroShotTeacher(task.model, task.tokenizer, self.class_names, sentence).class_features

    def new_optimizer(self) -> ProGradSGD:
        """SGD over the anchor, or over the context and the places."""
        context = self.context
        tuned = [context.ctx, context.place_logits] if self.anchored else [context.anchor]
        lambda_ = 1.0 if self.settings.lambda_ is None else self.settings.lambda_
        return self.new_sgd(tuned, lambda_=lambda_, rule=self.settings.rule(self))

    def rates(self, time: int) -> list[float]:
        """See `GradientLearner`; each stage has a cosine of its own length."""
        total = self.settings.epochs if self.anchored else self.settings.anchor_epochs
        return [self.settings.rate(time, total)] * len(self.optimizer.param_groups)

    @torch.no_grad()
    def begin_second_stage(self) -> None:
        """Keep the anchor as it is, with its class features."""
        self.anchored = True
        self._fixed = self.context.anchor_features(self.net)
        self.optimizer = self.new_optimizer()

    def losses(self, image_features: Tensor, labels: Tensor) -> Losses:
        """The loss of the stage; and the KL divergence from the teacher to its logits, unless λ is None."""
        settings, context = self.settings, self.context
        x, seen = self.seen(image_features, context.ctx.dtype)
        assert self._fixed is not None
        if not self.anchored:
            features = context.anchor_features(self.net)
            step = Step(self.net, len(self.class_names), x, labels, features, seen)
            distance = (features[:, None] - self._fixed).square().mean()
            return self._losses(step, {"anchor": settings.anchor_weight * distance})
        features = context.class_features(self.net, x, context.noise(len(x), self.generator))
        step = Step(self.net, len(self.class_names), x, labels, features, seen)
        both = (step.logits.detach() + self.net.logits(x.detach(), self._fixed)) / 2
        target = (both / settings.kd_temperature).log_softmax(1)
        student = (step.logits / settings.kd_temperature).log_softmax(1)
        distance = settings.kd_temperature**2 * F.kl_div(student, target, log_target=True, reduction="none").mean()
        entropy = settings.entropy_weight * F.cross_entropy(step.logits, labels)
        return self._losses(step, {"cross_entropy": entropy, "distillation": settings.kd_weight * distance})

    def _losses(self, step: Step, terms: Mapping[str, Tensor]) -> Losses:
        general = None
        if self.settings.lambda_ is not None:
            general = self.criterion(step.logits, self.general_teacher.logits(step.seen_by_teacher), step.labels)[1]
        correct = count_correct(step.logits.detach(), step.labels)
        total = torch.stack([*terms.values()]).sum()
        return Losses(total, general, {name: term.detach() for name, term in terms.items()}, correct)

    @torch.no_grad()
    def epoch_ended(self, epoch: int) -> None:
        """After the anchor's last epoch, the second stage begins."""
        super().epoch_ended(epoch)
        if epoch == self.settings.anchor_epochs:
            self.begin_second_stage()

    def state_dict(self) -> dict[str, Tensor]:
        """See `GradientLearner`; and which stage it is."""
        return {**super().state_dict(), "anchored": torch.tensor(self.anchored)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take up what `state_dict` gave, in its stage."""
        super().load_state_dict(state)
        if self.memory.pop("anchored"):
            self.begin_second_stage()

    @torch.no_grad()
    def class_features(self, class_names: Sequence[str]) -> Tensor:
        """(C, D) unit rows for classes that it was trained on; else their means with those of the anchor's prompts."""
        features = super().class_features(class_names)
        if set(readable_class_names(class_names)) <= set(self.class_names):
            return features
        return (features + self.context.anchor_features(self.net.with_classes(class_names))) / 2
