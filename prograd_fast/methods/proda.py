"""ProDA: many contexts, and a Gaussian distribution of the classifiers that they give."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from prograd_fast.clip import PromptedCLIP
from prograd_fast.clip.layout import ClassTokenPosition
from prograd_fast.clip.prompt_encoder import PromptEncoder
from prograd_fast.clip.tokens import TokenizedTexts
from prograd_fast.methods.base import Losses, Task, count_correct
from prograd_fast.methods.class_features import Context
from prograd_fast.methods.presets import COOP
from prograd_fast.methods.prompt_tuning import PromptTuning, PromptTuningLearner, Step

PORT: Mapping[str, Any] = {**COOP, "lr": 0.001, "batch_size": 4, "epochs": 100}  # ml-stat-Sustech/CLIP_Calibration
MOST_CONTEXTS = 1_000  # the authors have 32
PLACES: tuple[ClassTokenPosition, ...] = ("front", "middle", "end")


class Collection(Context):
    """N contexts: with the first quarter the name stands in front, with the second in the middle, else at the end.

    Args:
        ctx: (M, d), the last of them; the others start from it or, where it is random, from nothing, each with
            N(0, 0.02²) added.
        n_contexts: N, a multiple of 4.
        n_taken: K, how many a training step takes, a multiple of 4; as many of each place as it has among N.
        from_words: whether `ctx` holds words.
    """

    def __init__(self, ctx: nn.Parameter, n_contexts: int, n_taken: int, from_words: bool) -> None:
        super().__init__(ctx)
        noise = 0.02 * torch.randn(n_contexts - 1, *ctx.shape).to(ctx)
        self.others = nn.Parameter(noise + ctx.detach() if from_words else noise)
        self.sizes, self.taken = ([n // 4, n // 4, n // 2] for n in (n_contexts, n_taken))
        self._nets: WeakKeyDictionary[PromptedCLIP, list[PromptedCLIP]] = WeakKeyDictionary()

    @property
    def contexts(self) -> Tensor:
        """(N, M, d)."""
        return torch.cat([self.others, self.ctx[None]])

    def noise(self, n_pictures: int, generator: torch.Generator) -> Tensor:
        """(K, 1) int64: the contexts of a step, drawn anew in each, without any twice."""
        chosen, first = [], 0
        for size, n in zip(self.sizes, self.taken, strict=True):
            chosen.append(first + torch.randperm(size, generator=generator, device=generator.device)[:n])
            first += size
        return torch.cat(chosen)[:, None]

    def fixed_noise(self, generator: torch.Generator) -> None:
        """Nothing is random at the test, which takes all contexts."""

    def features(self, net: PromptedCLIP, noise: Tensor | None) -> Tensor:
        """(K, C, D) unit rows of the contexts that were drawn; None: of all."""
        contexts = self.contexts if noise is None else self.contexts[noise[:, 0]]
        parts = contexts.split(self.sizes if noise is None else self.taken)
        placed = zip(self._placed(net), parts, strict=True)
        return torch.cat([one.class_features(part) for one, part in placed if len(part)])

    def class_features(self, net: PromptedCLIP, image_features: Tensor, noise: Tensor | None) -> Tensor:
        """(C, D) means of unit rows; they are not unit rows again."""
        return self.features(net, noise).mean(0)

    def _placed(self, net: PromptedCLIP) -> list[PromptedCLIP]:
        """Nets of the same classes, one for each place of the name."""
        if net not in self._nets:
            group = None if net.encoder.share is None else dist.group.WORLD
            self._nets[net] = [net.with_classes(net.class_names, group, place) for place in PLACES]
        return self._nets[net]


@dataclass(frozen=True)
class ProDA(PromptTuning):
    """Lu et al., CVPR 2022, arXiv:2205.03340; after a port by others, ml-stat-Sustech/CLIP_Calibration.

    A step takes K of N contexts. With the unit features f_kc of class c, their means μ_c over k, δ_kc = f_kc - μ_c, and
    the features g_j of all N contexts without any name:

        σ_bc = Σ_d x_bd² Σ_k (δ_k,y(b),d - δ_kcd)² / (K + 1)
        loss = CE(s·x_b·μ_c + ½ s² σ_bc, y) + α · mean over j ≠ k of |g_j·g_k|

    The test takes s·x·μ_c with the mean over all N. The authors' repository has no code; the port divides by K + 1. It
    goes through the contexts in a random order; here each step draws as many of each place as there are among N.

    Attributes:
        n_contexts: N, a multiple of 4.
        contexts_at_once: K, a multiple of 4.
        alpha: α.

    Raises:
        ValueError: a setting is out of range.
    """

    n_contexts: int = 32
    contexts_at_once: int = 4
    alpha: float = 0.1

    name: ClassVar[str] = "proda"
    title: ClassVar[str] = "ProDA"
    year: ClassVar[int | None] = 2022
    trains: ClassVar[str] = "many contexts, with the name in three places"
    keeps: ClassVar[str] = "contexts apart from each other"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "vit-b16-port": PORT,
        "vit-b16-base-to-new": PORT,
    }
    differs: ClassVar[str] = "The authors released no code; the settings are those of a port by others."

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, most in (("n_contexts", MOST_CONTEXTS), ("contexts_at_once", self.n_contexts)):
            value = getattr(self, name)
            if not 4 <= value <= most or value % 4:
                raise ValueError(f"{name} must be a multiple of 4, from 4 to {most}, got {value}")
        if self.alpha < 0:
            raise ValueError(f"alpha must be 0 or more, got {self.alpha}")

    def start(self, task: Task) -> "ProDALearner":
        """Build network, contexts and optimizer."""
        return ProDALearner(self, task)

    def context(self, learner: PromptTuningLearner) -> Context:
        """The contexts."""
        return Collection(learner.net.prompt.ctx, self.n_contexts, self.contexts_at_once, self.ctx_init is not None)


class ProDALearner(PromptTuningLearner):
    """Many contexts under training.

    Attributes:
        nameless: the encoder of contexts without a class name.
    """

    settings: ProDA
    context: Collection

    def __init__(self, settings: ProDA, task: Task) -> None:
        super().__init__(settings, task)
        tower, n_ctx = self.net.tower, self.net.n_ctx
        text = TokenizedTexts.of(task.tokenizer, tower, [" ".join(["X"] * n_ctx) + "."])
        positions = text.start + torch.arange(n_ctx)[None]
        ids = text.ids[:, : tower.length(text.ids)]
        self.nameless = PromptEncoder(tower, ids, positions, class_specific=False, max_memory=task.max_memory)

    def losses(self, image_features: Tensor, labels: Tensor) -> Losses:
        """Cross-entropy with the variances, and α times the overlap; the KL divergence is that of s·x·μ."""
        context = self.context
        x, seen = self.seen(image_features, context.ctx.dtype)
        features = context.features(self.net, context.noise(len(x), self.generator))
        step = Step(self.net, len(self.class_names), x, labels, features.mean(0), seen)
        spread = variances(features, x, labels)
        entropy = F.cross_entropy(step.logits + 0.5 * self.scale**2 * spread, labels)
        terms = {"cross_entropy": entropy, "overlap": self.settings.alpha * self.overlap()}
        general = None
        if self.settings.lambda_ is not None:
            general = self.criterion(step.logits, self.general_teacher.logits(seen), labels)[1]
        correct = count_correct(step.logits.detach(), labels)
        return Losses(
            torch.stack([*terms.values()]).sum(), general, {name: t.detach() for name, t in terms.items()}, correct
        )

    def overlap(self) -> Tensor:
        """Mean over j ≠ k of |g_j·g_k|, of all N contexts without a name."""
        g = self.nameless(self.context.contexts, unit=True)[:, 0]
        products = (g @ g.mT).abs()
        return (products.sum() - products.diagonal().sum()) / (len(g) * (len(g) - 1))


def variances(features: Tensor, image_features: Tensor, labels: Tensor) -> Tensor:
    """σ of `ProDA`, (B, C), from (K, C, D) features, (B, D) pictures and (B,) labels; as products, without B·C·D."""
    x = image_features.square()
    with torch.autocast(x.device.type, enabled=False):  # differences of products
        deviations = features.to(x.dtype) - features.to(x.dtype).mean(0)
        squares, own = deviations.square().sum(0), deviations[:, labels]  # (C, D), (K, B, D)
        both = torch.einsum("kbd,kcd->bc", x * own, deviations)
        sums = (x * squares[labels]).sum(1, keepdim=True) + x @ squares.mT - 2 * both
    return sums / (len(features) + 1)
