"""GDA: Gaussian discriminant analysis of the image features, in closed form, added to the zero-shot logits."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from prograd_fast.methods.base import Task
from prograd_fast.methods.cached_head import HeadMethod, LinearHead, Texts, accuracy, class_counts
from prograd_fast.methods.crops import Crops

ALPHAS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
NEIGHBOURS, COPIES = 64, 16  # of a class without pictures: pictures nearest to its text, and copies of the text


@dataclass(frozen=True)
class GDA(HeadMethod):
    """Wang et al., ICLR 2024, arXiv:2402.04087; code mrflogs/ICLR24. Nothing is trained.

        logits = s · x tᵀ + α · (x Wᵀ + b),   W = μ P,   b_c = log(1/C) - μ_c P μ_cᵀ / 2

    with the class means μ of the M unit rows x_i, their scatter S = Σ (x_i - μ_y)ᵀ(x_i - μ_y), and the precision
    P = D · (S + tr(S)/(M - 1) · I)⁺. s is the model's logit scale (the authors write 100, which is CLIP's). α is the
    one of `ALPHAS` with the highest accuracy on validation pictures, the smallest of equals; without such pictures it
    is the setting.

    A class without pictures gets its Gaussian as in the authors' base-to-new code: μ is the mean of the 64 pictures
    nearest to its text feature t_c and of 16 copies of t_c, and P the mean over these classes of
    D · (S_c + tr(S_c)/(k - 1) · I)⁺, where S_c is the scatter of its k neighbours around t_c. The authors' script
    estimates the base classes another way there; here they keep the estimate above.

    Attributes:
        alpha: α without validation pictures.

    Raises:
        ValueError: a setting is out of range; by `start`: a class has no picture.
    """

    alpha: float = 0.1

    name: ClassVar[str] = "gda"
    title: ClassVar[str] = "GDA"
    year: ClassVar[int | None] = 2024
    trains: ClassVar[str] = "nothing: closed form"
    keeps: ClassVar[str] = "zero-shot logits, to which it is added"
    chooses: ClassVar[str] = "alpha"
    crops: ClassVar[Crops | None] = Crops(averaged=False)
    differs: ClassVar[str] = "The authors search on all validation pictures of the set."

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.alpha < 0:
            raise ValueError(f"alpha must be 0 or more, got {self.alpha}")

    @torch.no_grad()
    def head(self, task: Task, texts: Texts) -> "Gaussians":
        """Fit the Gaussians, and choose α."""
        head = Gaussians(texts, task.image_features, self.alpha)
        if len(task.labels):
            class_counts(task, self.title)
            _, _, weight, bias = gaussians(task.image_features, task.labels, len(texts.names))
            head.weight.copy_(weight)
            head.bias.copy_(bias)
            if task.validation is not None:
                head.alpha.fill_(chosen_alpha(head, *task.validation, texts, self.alpha))
        return head


def chosen_alpha(head: "Gaussians", x: Tensor, labels: Tensor, texts: Texts, default: float) -> float:
    """The α of `ALPHAS` with the highest accuracy on (V, D) validation pictures; `default` if none is ever right."""
    zero_shot, correction = texts.logits(x), x @ head.weight.T + head.bias
    found = torch.stack([accuracy(zero_shot + alpha * correction, labels) for alpha in ALPHAS])
    return ALPHAS[int(found.argmax())] if found.max() > 0 else default


def gaussians(x: Tensor, labels: Tensor, n_classes: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gaussians with a mean for each class and one precision; see `GDA`.

    Args:
        x: (M, D) unit rows; several views of a picture are rows of their own.
        labels: (M,) int64; every class has a row.
        n_classes: C.

    Returns:
        (C, D) means, (D, D) precision, (C, D) weight, (C,) bias; float64, since small scatter is divided by.
    """
    x = x.double()
    one_hot = F.one_hot(labels, n_classes).to(x)
    means = one_hot.T @ x / one_hot.sum(0)[:, None]
    precision = _precision(x - means[labels])
    weight, bias = _discriminant(means, precision)
    return means, precision, weight, bias - math.log(n_classes)


def _precision(deviations: Tensor) -> Tensor:
    """D · (S + tr(S)/(M - 1) · I)⁺ of (M, D) deviations; 0 where there is no scatter."""
    (n, width), trace = deviations.shape, deviations.square().sum()
    identity = torch.eye(width, dtype=deviations.dtype, device=deviations.device)
    if n < 2 or trace == 0:
        return 0 * identity
    # never singular: no eigenvalue is smaller than tr(S)/(M - 1), and none larger than twice tr(S)
    return width * torch.linalg.inv(deviations.T @ deviations + trace / (n - 1) * identity)


def _discriminant(means: Tensor, precision: Tensor) -> tuple[Tensor, Tensor]:
    """Weight and bias without log(1/C)."""
    weight = means @ precision
    return weight, -(weight * means).sum(1) / 2


class Gaussians(LinearHead):
    """The fit of `GDA`, and the pictures, for the Gaussians of other classes."""

    per_picture = ("pictures",)
    weight: Tensor
    bias: Tensor
    alpha: Tensor
    pictures: Tensor

    def __init__(self, texts: Texts, pictures: Tensor, alpha: float) -> None:
        super().__init__()
        self.names = texts.names
        self.register_buffer("weight", torch.zeros_like(texts.unit))
        self.register_buffer("bias", torch.zeros_like(texts.unit[:, 0]))
        self.register_buffer("alpha", texts.unit.new_tensor(alpha))
        self.register_buffer("pictures", pictures.clone())

    def linear(self, texts: Texts) -> tuple[Tensor, float, Tensor]:
        """Zero-shot's matrix and α times that of the Gaussians."""
        weight, bias = self._discriminant_of(texts)
        return texts.scale * texts.unit + self.alpha * weight, 1.0, self.alpha * bias

    def _discriminant_of(self, texts: Texts) -> tuple[Tensor, Tensor]:
        if texts.names == self.names:
            return self.weight, self.bias
        weight, bias = torch.zeros_like(texts.unit), torch.zeros_like(texts.unit[:, 0])
        known = {name: i for i, name in enumerate(self.names)}
        rows = [known.get(name, -1) for name in texts.names]
        old, new = ([i for i, row in enumerate(rows) if (row >= 0) == is_old] for is_old in (True, False))
        weight[old], bias[old] = self.weight[[rows[i] for i in old]], self.bias[[rows[i] for i in old]]
        if new:
            of_new = unseen_gaussians(self.pictures, texts.unit[new])
            weight[new], bias[new] = of_new[0].to(weight), (of_new[1] - math.log(len(self.names))).to(bias)
        return weight, bias


def unseen_gaussians(pictures: Tensor, texts: Tensor) -> tuple[Tensor, Tensor]:
    """Weight (C, D) and bias (C,), without log(1/C), of classes that have no pictures; see `GDA`.

    Args:
        pictures: (M, D) unit rows of other classes.
        texts: (C, D) unit text features.
    """
    pictures, texts = pictures.double(), texts.double()
    k = min(NEIGHBOURS, len(pictures))
    means, precision = torch.empty_like(texts), texts.new_zeros(2 * texts.shape[1:])
    for i, text in enumerate(texts):
        nearest = pictures[(pictures @ text).topk(k).indices]
        means[i] = (nearest.sum(0) + COPIES * text) / (k + COPIES)
        precision += _precision(nearest - text) / len(texts)
    return _discriminant(means, precision)
