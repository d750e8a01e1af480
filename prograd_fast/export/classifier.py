"""The classifier of a trained method, as weights that any library can multiply with image features."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import singledispatch
from typing import NoReturn

import torch
from torch import Tensor

from prograd_fast.clip import ZeroShotTeacher
from prograd_fast.methods import Learner, PromptTuningLearner
from prograd_fast.methods.cached_head import HeadLearner, LinearHead
from prograd_fast.methods.dept import DePTLearner
from prograd_fast.methods.linear_probe import LinearLearner, check_classes
from prograd_fast.methods.xerm import CausalNormClassifier, XERMLearner
from prograd_fast.methods.zero_shot import ZeroShotLearner


@dataclass(frozen=True)
class Classifier:
    """Probabilities of C classes: the mean over S matrices of softmax(scale · x @ weight[s] + bias).

    Attributes:
        class_names: C names.
        weight: (S, D, C) float32 on the CPU. S is 1, but for methods that average samples.
        scale: the factor of the cosines, exp of open_clip's `logit_scale`; 1 where the weights are no unit columns.
        bias: (C,) float32 on the CPU; None: zeros.
    """

    class_names: tuple[str, ...]
    weight: Tensor
    scale: float = 1.0
    bias: Tensor | None = None

    def __call__(self, image_features: Tensor) -> Tensor:
        """(B, C) probabilities of (B, D) unit rows."""
        logits = self.scale * image_features @ self.weight
        return (logits if self.bias is None else logits + self.bias).softmax(dim=-1).mean(dim=0)


@torch.no_grad()
def classifier_of(learner: Learner, class_names: Sequence[str]) -> Classifier:
    """The classifier that a learner is, for these classes.

    Raises:
        ValueError: the learner cannot name the classes, or is no such classifier: its class features depend on the
            picture, or are not known here.
    """
    weight, scale, bias = _parts(learner, class_names)
    if bias is not None:
        bias = bias.detach().float().cpu().expand(len(class_names)).contiguous()
    return Classifier(tuple(class_names), weight.detach().float().cpu().mT.contiguous(), scale, bias)


_Parts = tuple[Tensor, float, Tensor | None]  # (S, C, D), scale, bias


@singledispatch
def _parts(learner: Learner, class_names: Sequence[str]) -> _Parts:
    return _no_matrix(type(learner).__name__)


def _no_matrix(name: str) -> NoReturn:
    raise ValueError(
        f"the classifier of {name} is no matrix, the same for every picture; use the run itself: prograd-fast predict, "
        "or prograd_fast.training.open_run"
    )


@_parts.register
def _(learner: ZeroShotLearner, class_names: Sequence[str]) -> _Parts:
    task = learner.task
    teacher = ZeroShotTeacher(task.model, task.tokenizer, class_names, learner.settings.templates)
    return teacher.class_features[None], float(teacher.logit_scale), teacher.logit_bias


@_parts.register
def _of_prompts(learner: PromptTuningLearner, class_names: Sequence[str]) -> _Parts:
    features = learner.class_features(class_names)
    bias = getattr(learner.net.model, "logit_bias", None)
    return features.flatten(0, -3) if features.ndim > 2 else features[None], learner.scale, bias


@_parts.register
def _(learner: DePTLearner, class_names: Sequence[str]) -> _Parts:
    features, scale, bias = _of_prompts(learner, class_names)
    columns, w, context = learner.columns_of(class_names), learner.settings.head_weight, learner.context
    if columns is None:
        return features, scale, bias
    zero = context.of_images(torch.zeros_like(features[0, :1]))  # its logits are linear in unit rows, with a bias
    units = torch.eye(features.shape[-1]).to(features)
    of_head = (context.of_images(units) - zero).mT
    own = 0.0 if bias is None else (1 - w) * bias
    return (1 - w) * scale * features + w * of_head[columns], 1.0, own + w * zero[0, columns]


@_parts.register
def _(learner: HeadLearner, class_names: Sequence[str]) -> _Parts:
    if not isinstance(learner.module, LinearHead):
        return _no_matrix(learner.settings.title)
    weight, scale, bias = learner.module.linear(learner.texts_of(class_names))
    return weight[None], scale, bias


@_parts.register
def _(learner: LinearLearner, class_names: Sequence[str]) -> _Parts:
    check_classes(class_names, learner.class_names)
    return learner.module.weight[None], 1.0, learner.module.bias


@_parts.register
def _(learner: XERMLearner, class_names: Sequence[str]) -> _Parts:
    check_classes(class_names, learner.class_names)
    student = learner.student
    if isinstance(student, CausalNormClassifier):
        units = torch.eye(student.weight.shape[1]).to(student.weight)  # its logits are linear in unit rows
        return student(units).mT[None], 1.0, None
    return student.weight[None], 1.0, student.bias
