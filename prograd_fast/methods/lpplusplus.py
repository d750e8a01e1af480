"""LP++: a linear probe and, for each class, a learned weight of the text feature; the data give the step sizes."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prograd_fast.methods.base import Task
from prograd_fast.methods.cached_head import LinearHead, Texts, TrainedHead, TrainedHeadLearner
from prograd_fast.optim.two_gradients import TwoGradients

START = 250.0  # of α, times the mean cosine of pictures and their own class


@dataclass(frozen=True)
class LPPlusPlus(TrainedHead):
    """Huang et al., CVPR 2024, arXiv:2404.02285; code FereshteShakeri/FewShot-CLIP-Strong-Baseline.

        logits = x Wᵀ + b + α ∘ f,   f = x tᵀ

    with unit rows x and t, and no logit scale. W starts as the sum (not the mean) of each class's features, b at random
    and α at 250 · mean_c mean_{i in c} f_ic. With N pictures the step sizes are 4N / λ_max(xᵀx) for W and b, which all
    steps train with momentum, and N / (4 max_c Σ_i f_ic²) for α, which moves in every tenth epoch alone. The defaults
    are the authors', with all pictures in a step.

    The authors keep the epoch that is best on validation pictures: `TrainOptions.patience`, with as many epochs.

    Attributes:
        lr: Multiple of both step sizes, constant.
        alpha_every: Epochs from one step of α to the next.
        sum_gradients: Whether a step of α takes the sum of its gradients of all epochs so far. The authors' code does,
            since it never clears them; the paper does not.
    """

    lr: float = 1.0
    epochs: int = 300
    alpha_every: int = 10
    sum_gradients: bool = False

    name: ClassVar[str] = "lp++"
    title: ClassVar[str] = "LP++"
    year: ClassVar[int | None] = 2024
    trains: ClassVar[str] = "a linear classifier, a weight of each text feature"
    keeps: ClassVar[str] = "text features, to which it is added"
    names_new_classes: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.alpha_every < 1:
            raise ValueError(f"alpha_every must be 1 or more, got {self.alpha_every}")

    @torch.no_grad()
    def head(self, task: Task, texts: Texts) -> "Blended":
        """W and α from the pictures, b at random."""
        head = Blended(texts.unit)
        if len(task.labels):
            one_hot = F.one_hot(task.labels, len(texts.names)).to(texts.unit)
            head.weight.copy_(one_hot.T @ task.image_features)
            own, counts = (one_hot * (task.image_features @ texts.unit.T)).sum(0), one_hot.sum(0)
            head.alpha.fill_(START * (own[counts > 0] / counts[counts > 0]).mean())
        return head

    def learner(self, task: Task, texts: Texts) -> "BlendedLearner":
        """See `TrainedHead`."""
        return BlendedLearner(self, task, texts)

    def new_optimizer(self, learner: TrainedHeadLearner) -> TwoGradients:
        """SGD with two step sizes. A momentum of 1 is the sum of all gradients."""
        head, task = learner.module, learner.task
        assert isinstance(head, Blended)
        rate, alpha_rate = step_sizes(task.image_features, learner.texts.unit)
        optimizer = learner.new_sgd([head.weight, head.bias], lambda_=learner.lambda_)
        optimizer.param_groups[0]["lr"] = self.lr * rate
        momentum = float(self.sum_gradients)
        optimizer.add_param_group(
            {"params": [head.alpha], "lr": self.lr * alpha_rate, "momentum": momentum, "weight_decay": 0.0}
        )
        return optimizer


def step_sizes(x: Tensor, texts: Tensor) -> tuple[float, float]:
    """Step sizes of W and b, and of α: see `LPPlusPlus`; 1 without pictures.

    Args:
        x: (N, D) unit rows.
        texts: (C, D) unit rows.
    """
    n = len(x)
    if not n:
        return 1.0, 1.0
    largest = torch.linalg.matrix_norm(x.double(), ord=2).square()
    most = (x @ texts.T).square().sum(0).max()
    return 4 * n / float(largest), n / (4 * float(most))


class Blended(LinearHead):
    """W, b and α of `LPPlusPlus`.

    Args:
        texts: (C, D) unit rows.
    """

    def __init__(self, texts: Tensor) -> None:
        super().__init__()
        n_classes, width = texts.shape
        self.weight = nn.Parameter(torch.zeros_like(texts))
        self.bias = nn.Parameter(torch.empty(n_classes).uniform_(-1, 1) / width**0.5)
        self.alpha = nn.Parameter(texts.new_zeros(n_classes))

    def linear(self, texts: Texts) -> tuple[Tensor, float, Tensor]:
        """W + α ∘ t and b."""
        return self.weight + self.alpha[:, None] * texts.unit, 1.0, self.bias


class BlendedLearner(TrainedHeadLearner):
    """Both groups at a constant rate, the second one in some epochs only."""

    settings: LPPlusPlus

    def rates(self, time: int) -> list[float]:
        """See `GradientLearner`."""
        return [1.0, float((time + 1) % self.settings.alpha_every == 0)]
