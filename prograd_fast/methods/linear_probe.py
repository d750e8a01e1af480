"""Linear probe: logistic regression on the image features. No text, so it cannot name a class that it was not shown."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from prograd_fast.methods.base import Scores, Task


@dataclass(frozen=True)
class LinearProbe:
    """Radford et al. 2021, arXiv:2103.00020, appendix A.3: scikit-learn's L-BFGS on frozen features.

    Attributes:
        C: Inverse strength of the L2 penalty. The default was chosen on validation pictures of emoji's
            base classes, for emoji-lite: `docs/settings.md` has the scan.
        max_iter: Limit of L-BFGS iterations.
    """

    C: float = 1.0
    max_iter: int = 1000

    name: ClassVar[str] = "linear-probe"
    title: ClassVar[str] = "linear probe"
    names_new_classes: ClassVar[bool] = False

    def start(self, task: Task) -> "LinearProbeLearner":
        """Fit the regression."""
        regression = LogisticRegression(C=self.C, max_iter=self.max_iter)
        regression.fit(task.image_features.cpu().numpy(), task.labels.cpu().numpy())
        return LinearProbeLearner(tuple(task.class_names), regression)


@dataclass(frozen=True)
class LinearProbeLearner:
    """The fitted regression over its own classes."""

    class_names: tuple[str, ...]
    regression: LogisticRegression

    def scores(self, class_names: Sequence[str]) -> Scores:
        """Probabilities of the classes that it was fitted on."""
        if tuple(class_names) != self.class_names:
            raise ValueError("a linear probe scores the classes that it was fitted on, in that order, and no others")
        return self._probabilities

    def _probabilities(self, image_features: Tensor) -> Tensor:
        return torch.from_numpy(self.regression.predict_proba(image_features.cpu().numpy()))
