"""Tip-Adapter: pictures vote for their labels, the more the nearer they are. Tip-Adapter-F trains where they lie."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prograd_fast.methods.base import Task
from prograd_fast.methods.cached_head import Head, HeadMethod, Texts, TrainedHead, TrainedHeadLearner, accuracy
from prograd_fast.methods.crops import Crops
from prograd_fast.methods.templates import COOP, SELECTED, by_set

STEPS = (200, 20)  # of the search: values of β, and of α for each

# The authors' configs: α without a search, and how far β and α are searched
_DATASETS: Mapping[str, tuple[float, float, float]] = {
    "imagenet": (1.17, 7.0, 3.0),
    "caltech101": (3.0, 12.0, 5.0),
    "dtd": (2.0, 13.0, 13.0),
    "eurosat": (2.0, 12.0, 10.0),
    "fgvc-aircraft": (5.0, 30.0, 30.0),
    "food101": (1.17, 10.0, 10.0),
    "oxford-flowers": (10.0, 50.0, 50.0),
    "oxford-pets": (1.17, 7.0, 3.0),
    "stanford-cars": (3.0, 20.0, 10.0),
    "sun397": (1.17, 12.0, 10.0),
    "ucf101": (3.0, 7.0, 3.0),
}
_PRESETS: Mapping[str, Mapping[str, Any]] = {
    name: dict(zip(("alpha", "search_beta", "search_alpha"), values, strict=True)) for name, values in _DATASETS.items()
}


@dataclass(frozen=True)
class TipAdapter(HeadMethod):
    """Zhang et al., ECCV 2022, arXiv:2207.09519; code gaopengcuhk/Tip-Adapter. Nothing is trained.

        logits = s · x tᵀ + α · exp(-β (1 - x Kᵀ)) V

    with unit rows x and t, keys K, the N pictures' features or the means of their crops (`Crops`), and values V, their
    labels as one-hot rows. The authors average crops that are not normalised; unit rows count alike in the mean.
    s is the model's logit scale (the authors write 100, which is CLIP's). α and β are searched on validation pictures;
    without such pictures they are the settings, which are the authors' on ImageNet.

    Attributes:
        alpha: α without a search.
        beta: β without a search.
        search_alpha: α is searched from 0.1 up to this.
        search_beta: β is searched from 0.1 up to this.
    """

    alpha: float = 1.17
    beta: float = 1.0
    search_alpha: float = 3.0
    search_beta: float = 7.0

    name: ClassVar[str] = "tip-adapter"
    title: ClassVar[str] = "Tip-Adapter"
    year: ClassVar[int | None] = 2022
    trains: ClassVar[str] = "nothing: the pictures are kept"
    keeps: ClassVar[str] = "zero-shot logits, to which it is added"
    chooses: ClassVar[str] = "alpha and beta"
    names_new_classes: ClassVar[bool] = False
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = _PRESETS
    set_settings: ClassVar[Mapping[str, Mapping[str, Any]]] = {**by_set(COOP), "ImageNet": {"templates": SELECTED}}
    crops: ClassVar[Crops | None] = Crops(averaged=True)
    differs: ClassVar[str] = (
        "The authors average crops that are not normalised, and search on all validation pictures of the set."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for setting, least in (("alpha", 0.0), ("beta", 0.0), ("search_alpha", 0.1), ("search_beta", 0.1)):
            if getattr(self, setting) < least:
                raise ValueError(f"{setting} must be {least:g} or more, got {getattr(self, setting)}")

    def head(self, task: Task, texts: Texts) -> Head:
        """The pictures as keys, with searched α and β."""
        head = self.cache(task, texts)
        self.search(head, task, texts)
        return head

    def cache(self, task: Task, texts: Texts) -> "Cache":
        """The pictures as keys, with the settings' α and β."""
        values = F.one_hot(task.labels, len(texts.names)).to(texts.unit)
        return Cache(task.image_features.clone(), values, self.alpha, self.beta)

    @torch.no_grad()
    def search(self, head: "Cache", task: Task, texts: Texts) -> None:
        """Set α and β to the first best ones on validation pictures, if there are any."""
        if task.validation is not None and len(head.keys):
            found = searched(head, *task.validation, texts, (self.search_beta, self.search_alpha))
            if found is not None:
                head.beta.fill_(found[0])
                head.alpha.fill_(found[1])


@dataclass(frozen=True)
class TipAdapterF(TrainedHead, TipAdapter):
    """Zhang et al., ECCV 2022, arXiv:2207.09519; code gaopengcuhk/Tip-Adapter, its run_tip_adapter_F.

        logits = s · x tᵀ + α · exp(-β (1 - x Kᵀ)) V

    is `TipAdapter` whose keys K are trained by AdamW with ε = 1e-4, at the settings' α and β, and are not normalised
    again. The learning rate falls step by step. The defaults are the authors' (100 epochs on EuroSAT). α and β are
    searched on validation pictures after training.

    The keys are those of the last epoch. The authors keep the epoch that is best on test pictures, which tells nothing
    about other pictures.
    """

    lr: float = 1e-3
    weight_decay: float = 0.01
    epochs: int = 20
    batch_size: int | None = 256

    name: ClassVar[str] = "tip-adapter-f"
    title: ClassVar[str] = "Tip-Adapter-F"
    trains: ClassVar[str] = "the keys, a row for each picture"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        **_PRESETS,
        "eurosat": {**_PRESETS["eurosat"], "epochs": 100},
    }
    differs: ClassVar[str] = (
        "The authors average crops that are not normalised, keep the epoch that is best on the test, and search on all "
        "validation pictures of the set."
    )
    optimizer = "adamw"
    eps = 1e-4
    schedule_by = "step"

    def head(self, task: Task, texts: Texts) -> Head:
        """The pictures as keys."""
        return self.cache(task, texts)

    def training_ended(self, learner: TrainedHeadLearner) -> None:
        """The search, with the keys that are kept."""
        head = learner.module
        assert isinstance(head, Cache)
        self.search(head, learner.task, learner.texts)


def searched(
    head: "Cache", x: Tensor, labels: Tensor, texts: Texts, scales: tuple[float, float]
) -> tuple[float, float] | None:
    """The first β and α of a grid with the highest accuracy on pictures; None if none is ever right.

    The values are i · (scale - 0.1) / n + 0.1 for i < n, with n from `STEPS`. For each β all α are tried.

    Args:
        head: Whose keys and values count.
        x: (V, D) unit rows.
        labels: (V,) int64.
        texts: The classes.
        scales: Upper ends of β and α.
    """
    betas, alphas = ([i * (end - 0.1) / n + 0.1 for i in range(n)] for end, n in zip(scales, STEPS, strict=True))
    zero_shot, near, found = texts.logits(x), head.similarities(x), []
    for beta in betas:
        votes = head.votes(near, beta)
        found += [accuracy(zero_shot + alpha * votes, labels) for alpha in alphas]
    best = torch.stack(found)
    if best.max() == 0:
        return None
    i, j = divmod(int(best.argmax()), len(alphas))
    return betas[i], alphas[j]


class Cache(Head):
    """Keys and values of `TipAdapter`.

    Args:
        keys: (N, D).
        values: (N, C).
        alpha: α.
        beta: β.
    """

    per_picture = ("keys", "values")
    values: Tensor
    alpha: Tensor
    beta: Tensor

    def __init__(self, keys: Tensor, values: Tensor, alpha: float, beta: float) -> None:
        super().__init__()
        self.keys = nn.Parameter(keys)
        self.register_buffer("values", values)
        self.register_buffer("alpha", values.new_tensor(alpha))
        self.register_buffer("beta", values.new_tensor(beta))

    def similarities(self, x: Tensor) -> Tensor:
        """(B, N): x Kᵀ - 1."""
        return x @ self.keys.T - 1

    def votes(self, similarities: Tensor, beta: Tensor | float) -> Tensor:
        """(B, C): exp(β (x Kᵀ - 1)) V."""
        return (beta * similarities).exp() @ self.values

    def forward(self, x: Tensor, texts: Texts) -> Tensor:
        """See `TipAdapter`."""
        return texts.logits(x) + self.alpha * self.votes(self.similarities(x), self.beta)
