"""DePT: a second head on the features themselves takes up what only the trained classes need."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prograd_fast.clip.tokens import readable_class_names
from prograd_fast.methods.base import Losses, Scores, Task, count_correct
from prograd_fast.methods.class_features import Context
from prograd_fast.methods.presets import COOP
from prograd_fast.methods.prompt_tuning import PromptTuning, PromptTuningLearner, Step
from prograd_fast.optim import ProGradSGD

RELEASED: Mapping[str, Any] = {**COOP, "lr": 0.0035, "batch_size": 4, "epochs": 10}


class SecondHead(Context):
    """The context, and a linear classifier of text and image features that are scaled and shifted, each by its own.

    Args:
        ctx: (M, d).
        n_features: D.
        n_classes: C.
        length: of image features, by which unit rows are multiplied.
    """

    length: Tensor

    def __init__(self, ctx: nn.Parameter, n_features: int, n_classes: int, length: Tensor) -> None:
        super().__init__(ctx)
        self.text_scale, self.image_scale = (nn.Parameter(ctx.new_ones(n_features)) for _ in range(2))
        self.text_bias, self.image_bias = (nn.Parameter(ctx.new_zeros(n_features)) for _ in range(2))
        self.head = nn.Linear(n_features, n_classes).to(ctx)
        self.register_buffer("length", length)

    def of_texts(self, features: Tensor) -> Tensor:
        """(B, C) logits of text features (B, D), not unit rows."""
        return self.head(self.text_scale * features + self.text_bias)

    def of_images(self, features: Tensor) -> Tensor:
        """(B, C) logits of image features (B, D)."""
        return self.head(self.image_scale * (self.length * features) + self.image_bias)


@dataclass(frozen=True)
class DePT(PromptTuning):
    """Zhang et al., CVPR 2024, arXiv:2309.07439; code Koorye/DePT, on CoOp.

    With t_c and v the features of class and picture before they are normalised, z = s·cos(v, t_c), and a linear head h:

        loss = (1 - w)·CE(z, y) + w·CE([h(γt∘t_y + βt); h(γi∘v + βi)], [y; y])

    The classes that it was trained on are told by (1 - w)·z + w·h(γi∘v + βi), any list with others by z alone.

    Cached features are unit rows: v has a `image_length` that is the same for all pictures. With a loop of one's own,
    `image_length=1` and features of their own length are the authors' arithmetic.

    Attributes:
        head_weight: w.
        head_rate: The learning rate of the head, of γ and of β, in multiples of `lr`.
        image_length: Length of v. None: the mean length of the classes' t at the start.

    Raises:
        ValueError: a setting is out of range.
    """

    head_weight: float = 0.7
    head_rate: float = 6.5
    image_length: float | None = None

    name: ClassVar[str] = "dept"
    title: ClassVar[str] = "DePT"
    year: ClassVar[int | None] = 2024
    trains: ClassVar[str] = "context tokens, and a second, linear head"
    keeps: ClassVar[str] = "the similarity head, apart from what is peculiar to the trained classes"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"vit-b16-base-to-new": RELEASED}  # configs/trainers/ELP/CoOp

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.head_weight <= 1:
            raise ValueError(f"head_weight must be between 0 and 1, got {self.head_weight}")
        for name in ("head_rate", "image_length"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be above 0, got {value}")

    def start(self, task: Task) -> "DePTLearner":
        """Build network, context, second head and optimizer."""
        return DePTLearner(self, task)

    @torch.no_grad()
    def context(self, learner: PromptTuningLearner) -> Context:
        """The context and the second head."""
        ctx, length = learner.net.prompt.ctx, self.image_length
        mean = learner.net.class_features(unit=False).norm(dim=-1).mean() if length is None else torch.tensor(length)
        return SecondHead(ctx, learner.n_features, len(learner.class_names), mean.to(ctx))


class DePTLearner(PromptTuningLearner):
    """A context and a second head under training."""

    settings: DePT
    context: SecondHead

    def new_optimizer(self) -> ProGradSGD:
        """The context, and the second head at its own rate."""
        optimizer = super().new_optimizer()
        (group,) = optimizer.param_groups
        ctx, *head = group["params"]
        group["params"] = [ctx]
        optimizer.add_param_group({"params": head, "lr": self.settings.lr * self.settings.head_rate})
        return optimizer

    def rates(self, time: int) -> list[float]:
        """See `GradientLearner`; the warm-up's rate is the same for both groups."""
        context, head = super().rates(time)
        return [context, head / self.settings.head_rate if time < self.settings.warmup_epochs else head]

    def losses(self, image_features: Tensor, labels: Tensor) -> Losses:
        """Both heads' cross-entropy, and the KL divergence to the teacher, of similarities, unless λ is None."""
        context, w = self.context, self.settings.head_weight
        x, seen = self.seen(image_features, context.ctx.dtype)
        texts = self.net.class_features(unit=False)
        unit, features = F.normalize(x, dim=-1), F.normalize(texts, dim=-1)
        shown = unit if seen is x else F.normalize(seen, dim=-1)
        step = Step(self.net, len(self.class_names), unit, labels, features, shown)
        entropy, general = self._picture_losses(step)
        of_images = context.of_images(x)
        rows = torch.cat([context.of_texts(texts[labels]), of_images])
        terms = {"cross_entropy": (1 - w) * entropy, "head": w * F.cross_entropy(rows, labels.repeat(2))}
        with torch.no_grad():
            correct = count_correct((1 - w) * step.logits + w * of_images, labels)
        return Losses(
            torch.stack([*terms.values()]).sum(), general, {name: t.detach() for name, t in terms.items()}, correct
        )

    def columns_of(self, class_names: Sequence[str]) -> list[int] | None:
        """Which classes of the second head these are; None if there are others among them."""
        places = {name: i for i, name in reversed([*enumerate(self.class_names)])}
        names = readable_class_names(class_names)
        return [places[name] for name in names] if set(names) <= set(places) else None

    @torch.no_grad()
    def scores(self, class_names: Sequence[str]) -> Scores:
        """Both heads together for classes that both know; similarities alone for others."""
        similarities, columns, w = super().scores(class_names), self.columns_of(class_names), self.settings.head_weight
        if columns is None:
            return lambda x: similarities(F.normalize(x, dim=-1))

        @torch.no_grad()
        def scores(image_features: Tensor) -> Tensor:
            x = image_features.to(self.context.ctx.dtype)
            of_head = self.context.of_images(x)[:, columns]
            return (1 - w) * similarities(F.normalize(x, dim=-1)) + w * of_head

        return scores
