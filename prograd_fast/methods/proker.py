"""ProKeR: kernel ridge regression of what zero-shot leaves over, held near zero-shot."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from prograd_fast.methods.base import Task
from prograd_fast.methods.cached_head import Head, HeadMethod, Texts, accuracy
from prograd_fast.methods.crops import Crops

FEW = 9  # values of λ
# β and λ without validation pictures, by pictures per class: the authors', tuned on ImageNet with RN50
FIXED = {1: (3.0, 0.05), 2: (2.6, 0.05), 4: (1.5, 0.05), 8: (1.66, 0.07), 16: (1.7, 0.1)}


@dataclass(frozen=True)
class ProKeR(HeadMethod):
    """Bendou et al., CVPR 2025, arXiv:2501.11175, without training; code by its first author in omarnust/BReg-Adapter.

        f(x) = x tᵀ + K(x, S) A,   A = (K(S, S) / λ + I)⁻¹ (onehot(y) - S tᵀ),   K(a, b) = exp(-β (1 - a·b))

    with unit rows x, t and the pictures S. For λ → 0 this is zero-shot, and for λ → ∞ each picture adds what zero-shot
    has left over of its label, as far as the kernel reaches. The logits are s · f with the model's logit scale s, which
    the authors leave out: it does not change which class is the first, and makes zero-shot's probabilities of f = x tᵀ.

    β and λ are the first best ones of a grid on validation pictures, for each β all λ. The presets are the authors'
    grids. The default has the ends of that of Caltech101, and four values of each: a factorisation for each of the 200
    settings there takes longer than all else. Without validation pictures β and λ are the authors' fixed ones for the
    nearest number of pictures per class (`FIXED`).

    Attributes:
        betas: Least and largest β of the grid.
        ridges: Least and largest λ.
        steps: How many values of β and of λ, equally far apart.
    """

    betas: tuple[float, ...] = (0.5, 3.0)
    ridges: tuple[float, ...] = (1e-3, 1.0)
    steps: tuple[int, ...] = (4, 4)

    name: ClassVar[str] = "proker"
    title: ClassVar[str] = "ProKeR"
    year: ClassVar[int | None] = 2025
    trains: ClassVar[str] = "nothing: closed form"
    keeps: ClassVar[str] = "zero-shot logits, to which it is added"
    chooses: ClassVar[str] = "beta and lambda"
    names_new_classes: ClassVar[bool] = False
    crops: ClassVar[Crops | None] = Crops(averaged=False)
    differs: ClassVar[str] = "The authors' code searches on all validation pictures of the set."
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "caltech101": {"steps": (20, 10)},
        "eurosat": {"steps": (20, 100)},
        "dtd": {"betas": (0.1, 10.0), "ridges": (1e-3, 10.0), "steps": (20, 100)},
        "imagenet": {"betas": (1.5, 3.0), "ridges": (0.05, 0.25), "steps": (10, 10)},
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        for setting in ("betas", "ridges"):
            ends = getattr(self, setting)
            if len(ends) != 2 or not 0 < ends[0] <= ends[1]:
                raise ValueError(f"{setting} must be two numbers above 0, the lesser first, got {ends}")
        if len(self.steps) != 2 or min(self.steps) < 1:
            raise ValueError(f"steps must be two numbers of 1 or more, got {self.steps}")

    @torch.no_grad()
    def head(self, task: Task, texts: Texts) -> "Ridge":
        """Choose β and λ, and solve."""
        if not len(task.labels):
            return Ridge(task.image_features, texts.unit.new_empty(0, len(texts.names)), 1.0)
        shots = len(task.labels) / task.crops / len(texts.names)
        beta, ridge = FIXED[min(FIXED, key=lambda n: abs(math.log(n / shots)))]
        if task.validation is not None:
            betas, ridges = _grid(self.betas, self.steps[0]), _grid(self.ridges, self.steps[1])
            beta, ridge = chosen(task, texts, betas, ridges) or (beta, ridge)
        x = task.image_features
        return Ridge(x, coefficients(kernel(x, x, beta), residuals(x, task.labels, texts), ridge), beta)


def _grid(ends: tuple[float, ...], n: int) -> list[float]:
    values: list[float] = torch.linspace(ends[0], ends[1], n, dtype=torch.float64).tolist()
    return values


def kernel(a: Tensor, b: Tensor, beta: Tensor | float) -> Tensor:
    """(A, B): exp(-β (1 - a·b)) of unit rows, which is exp(-β ‖a - b‖² / 2)."""
    return (beta * (a @ b.T - 1)).exp()


def residuals(x: Tensor, labels: Tensor, texts: Texts) -> Tensor:
    """(N, C): onehot(y) - x tᵀ."""
    return F.one_hot(labels, len(texts.names)).to(x) - x @ texts.unit.T


def coefficients(gram: Tensor, residual: Tensor, ridge: float) -> Tensor:
    """A = (K / λ + I)⁻¹ R = λ (K + λ I)⁻¹ R, (N, C), in float64: the kernel's small eigenvalues are close to 0."""
    wide = gram.double()
    factor = torch.linalg.cholesky(wide + ridge * torch.eye(len(wide), dtype=wide.dtype, device=wide.device))
    return (ridge * torch.cholesky_solve(residual.double(), factor)).to(residual)


def chosen(task: Task, texts: Texts, betas: list[float], ridges: list[float]) -> tuple[float, float] | None:
    """The first β and λ with the highest accuracy on validation pictures; None if none is ever right."""
    assert task.validation is not None
    x, (seen, labels) = task.image_features, task.validation
    residual, zero_shot, found = residuals(x, task.labels, texts), seen @ texts.unit.T, []
    near, far = 1 - x @ x.T, 1 - seen @ x.T
    for beta in betas:
        to_seen = far.mul(-beta).exp_()
        for correction in corrections(near.mul(-beta).exp_(), to_seen, residual, ridges):
            found.append(accuracy(zero_shot + correction, labels))
    best = torch.stack(found)
    if best.max() == 0:
        return None
    i, j = divmod(int(best.argmax()), len(ridges))
    return betas[i], ridges[j]


def corrections(gram: Tensor, to_seen: Tensor, residual: Tensor, ridges: list[float]) -> Iterator[Tensor]:
    """(V, C) K(V, S) A for each λ, in the precision of the features.

    A factorisation for each λ; or, from `FEW` of them on, one eigendecomposition for all, which takes as long as that
    many factorisations. So it is where rounding makes the kernel of equal pictures indefinite. λ is added to `gram`
    itself meanwhile.
    """
    rest, diagonal = list(ridges), gram.diagonal().clone()
    while rest and len(ridges) < FEW:
        gram.diagonal().copy_(diagonal + rest[0])
        factor, failed = torch.linalg.cholesky_ex(gram)
        if failed:
            break
        yield to_seen @ (rest.pop(0) * torch.cholesky_solve(residual, factor))
    gram.diagonal().copy_(diagonal)
    if rest:
        values, vectors = torch.linalg.eigh(gram)
        left, right = to_seen @ vectors, vectors.T @ residual
        for ridge in rest:
            yield left @ ((ridge / (values.clamp(min=0) + ridge))[:, None] * right)


class Ridge(Head):
    """Pictures S (N, D), coefficients A (N, C) and β of `ProKeR`."""

    per_picture = ("pictures", "coefficients")
    pictures: Tensor
    coefficients: Tensor
    beta: Tensor

    def __init__(self, pictures: Tensor, coefficients: Tensor, beta: float) -> None:
        super().__init__()
        self.register_buffer("pictures", pictures.clone())
        self.register_buffer("coefficients", coefficients)
        self.register_buffer("beta", coefficients.new_tensor(beta))

    def forward(self, x: Tensor, texts: Texts) -> Tensor:
        """See `ProKeR`."""
        return texts.logits(x) + texts.scale * kernel(x, self.pictures, self.beta) @ self.coefficients
