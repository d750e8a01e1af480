"""Ways to adapt an image-text model to a few labelled pictures, one file each."""

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from prograd_fast.methods.base import GradientLearner, GradientMethod, Learner, Losses, Method, Scores, Task
from prograd_fast.methods.cocoop import CoCoOp
from prograd_fast.methods.context import Context
from prograd_fast.methods.coop import CoOp
from prograd_fast.methods.kgcoop import KgCoOp
from prograd_fast.methods.lasp import LASP
from prograd_fast.methods.linear_probe import LinearProbe
from prograd_fast.methods.nfl import NFL
from prograd_fast.methods.prograd import ProGrad
from prograd_fast.methods.prompt_tuning import PromptTuning, PromptTuningLearner
from prograd_fast.methods.promptsrc import PromptSRC
from prograd_fast.methods.subpt import SubPT, SubPTNFL
from prograd_fast.methods.variational import Variational
from prograd_fast.methods.xerm import XERM
from prograd_fast.methods.zero_shot import ZeroShot

_FILES = (  # file and class of each method, in the order of tables and plots
    "zero_shot.ZeroShot",
    "linear_probe.LinearProbe",
    "coop.CoOp",
    "cocoop.CoCoOp",
    "prograd.ProGrad",
    "kgcoop.KgCoOp",
    "lasp.LASP",
    "subpt.SubPT",
    "nfl.NFL",
    "subpt.SubPTNFL",
    "variational.Variational",
    "promptsrc.PromptSRC",
    "xerm.XERM",
)
METHODS: tuple[type[Method], ...] = tuple(
    getattr(import_module(f"{__name__}.{file}"), name) for file, name in (entry.split(".") for entry in _FILES)
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
    "LASP",
    "METHODS",
    "NFL",
    "XERM",
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
    "ProGrad",
    "PromptSRC",
    "PromptTuning",
    "PromptTuningLearner",
    "Scores",
    "SubPT",
    "SubPTNFL",
    "Task",
    "Variational",
    "ZeroShot",
    "method_named",
]
