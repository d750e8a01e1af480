"""Ways to adapt an image-text model to a few labelled pictures, one file each."""

from collections.abc import Mapping
from typing import Any

from prograd_fast.methods.base import GradientLearner, GradientMethod, Learner, Losses, Method, Scores, Task
from prograd_fast.methods.class_features import Context
from prograd_fast.methods.cocoop import CoCoOp
from prograd_fast.methods.coop import CoOp
from prograd_fast.methods.gda import GDA
from prograd_fast.methods.kgcoop import KgCoOp
from prograd_fast.methods.lasp import LASP
from prograd_fast.methods.linear_probe import LinearProbe
from prograd_fast.methods.nfl import NFL
from prograd_fast.methods.prograd import ProGradCoOp
from prograd_fast.methods.prompt_tuning import PromptTuning, PromptTuningLearner
from prograd_fast.methods.promptsrc import PromptSRC
from prograd_fast.methods.subpt import SubPT, SubPTNFL
from prograd_fast.methods.taskres import TaskRes
from prograd_fast.methods.variational import Variational
from prograd_fast.methods.xerm import XERMClassifier
from prograd_fast.methods.zero_shot import ZeroShot

METHODS: tuple[type[Method], ...] = (  # in the order of tables and plots
    ZeroShot,
    LinearProbe,
    CoOp,
    CoCoOp,
    ProGradCoOp,
    KgCoOp,
    LASP,
    SubPT,
    NFL,
    SubPTNFL,
    Variational,
    PromptSRC,
    XERMClassifier,
    TaskRes,
    GDA,
)


def method_named(name: str, settings: Mapping[str, Any], preset: str | None = None) -> Method:
    """The method of this name with these settings; see `Method.of`.

    Raises:
        ValueError: there is no such method, setting or preset.
    """
    for method in METHODS:
        if method.name == name:
            return method.of(settings, preset)
    raise ValueError(f"unknown method {name!r}; expected one of {', '.join(method.name for method in METHODS)}")


__all__ = [
    "GDA",
    "LASP",
    "METHODS",
    "NFL",
    "CoCoOp",
    "CoOp",
    "Context",
    "GradientLearner",
    "GradientMethod",
    "KgCoOp",
    "Learner",
    "LinearProbe",
    "Losses",
    "Method",
    "ProGradCoOp",
    "PromptSRC",
    "PromptTuning",
    "PromptTuningLearner",
    "Scores",
    "SubPT",
    "SubPTNFL",
    "Task",
    "TaskRes",
    "Variational",
    "XERMClassifier",
    "ZeroShot",
    "method_named",
]
