"""Linear probe: logistic regression on the image features. No text, so it cannot name a class that it was not shown."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from prograd_fast.methods.base import Learner, Method, Scores, Task


@dataclass(frozen=True)
class LinearProbe(Method):
    """Radford et al. 2021, arXiv:2103.00020, appendix A.3: scikit-learn's L-BFGS on frozen features.

        minimise over W, b:   ‖W‖²/2 + C · Σ_i -log softmax(W x_i + b)_{y_i}

    Attributes:
        C: Inverse strength of the L2 penalty. The default was chosen on validation pictures of emoji's
            base classes, for emoji-lite: `docs/settings.md` has the scan.
        max_iter: Limit of L-BFGS iterations.

    Raises:
        ValueError: a setting is out of range.
    """

    C: float = 1.0
    max_iter: int = 1000

    name: ClassVar[str] = "linear-probe"
    title: ClassVar[str] = "linear probe"
    year: ClassVar[int | None] = 2021
    trains: ClassVar[str] = "a linear classifier"
    keeps: ClassVar[str] = "nothing"
    names_new_classes: ClassVar[bool] = False
    differs: ClassVar[str] = "CoOp's authors tune its penalty on validation pictures; here it is fixed."

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.C > 0:
            raise ValueError(f"C must be above 0 and finite, got {self.C}")
        if self.max_iter < 1:
            raise ValueError(f"max_iter must be 1 or more, got {self.max_iter}")

    def start(self, task: Task) -> "LinearLearner":
        """Fit the regression."""
        learner = LinearLearner(task)
        if len(task.labels) and len(task.class_names) > 1:  # of a single class there is nothing to learn
            from sklearn.linear_model import LogisticRegression  # takes more than a second to import

            regression = LogisticRegression(C=self.C, max_iter=self.max_iter)
            with warnings.catch_warnings():  # of one picture per class, scikit-learn asks whether labels are numbers
                warnings.filterwarnings("ignore", "The number of unique classes", UserWarning)
                regression.fit(task.image_features.cpu().numpy(), task.labels.cpu().numpy())
            weight, bias = (torch.from_numpy(a) for a in (regression.coef_, regression.intercept_))
            if len(weight) == 1:  # of two classes scikit-learn keeps the second one's log-odds
                weight, bias = torch.cat([-weight, weight]) / 2, torch.cat([-bias, bias]) / 2
            with torch.no_grad():
                learner.module.weight.copy_(weight)
                learner.module.bias.copy_(bias)
        return learner


class LinearLearner(Learner):
    """A linear classifier over the classes that it was made for.

    Attributes:
        module: `torch.nn.Linear`, zero at first.
    """

    module: nn.Linear

    def __init__(self, task: Task) -> None:
        self.class_names = tuple(task.class_names)
        shape = len(self.class_names), task.image_features.shape[1]
        # float64: scikit-learn's own, whatever the features are
        self.module = nn.Linear(shape[1], shape[0], device=task.device, dtype=torch.float64)
        nn.init.zeros_(self.module.weight)
        nn.init.zeros_(self.module.bias)

    def scores(self, class_names: Sequence[str]) -> Scores:
        """Logits of the classes that it was fitted on."""
        check_classes(class_names, self.class_names)
        return lambda image_features: self.module(image_features.to(self.module.weight)).detach()


def check_classes(class_names: Sequence[str], learned: Sequence[str]) -> None:
    """ValueError unless these are the classes that a method that cannot name others has learned."""
    if tuple(class_names) != tuple(learned):
        raise ValueError("the method scores the classes that it was trained on, in that order, and no others")
