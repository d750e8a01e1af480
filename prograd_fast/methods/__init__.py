"""Ways to adapt an image-text model to a few labelled pictures, one file each."""

from collections.abc import Mapping
from typing import Any

from prograd_fast.methods.base import GradientLearner, GradientMethod, Learner, Losses, Method, Scores, Task
from prograd_fast.methods.context import Context
from prograd_fast.methods.coop import CoOp
from prograd_fast.methods.linear_probe import LinearProbe
from prograd_fast.methods.prograd import ProGrad
from prograd_fast.methods.prompt_tuning import PromptTuning, PromptTuningLearner
from prograd_fast.methods.zero_shot import ZeroShot

METHODS: tuple[type[Method], ...] = (ZeroShot, LinearProbe, CoOp, ProGrad)  # in the order of tables and plots


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
    "METHODS",
    "CoOp",
    "Context",
    "GradientLearner",
    "GradientMethod",
    "Learner",
    "LinearProbe",
    "Losses",
    "Method",
    "ProGrad",
    "PromptTuning",
    "PromptTuningLearner",
    "Scores",
    "Task",
    "ZeroShot",
    "method_named",
]
