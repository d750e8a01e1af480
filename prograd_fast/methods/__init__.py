"""Ways to adapt an image-text model to a few labelled pictures, one file each."""

from collections.abc import Mapping
from typing import Any

from prograd_fast.methods.anchoropt import AnchorOPT
from prograd_fast.methods.atprompt import ATPrompt
from prograd_fast.methods.base import (
    GradientLearner,
    GradientMethod,
    Learner,
    Losses,
    Method,
    Scores,
    Task,
    Teacher,
    check_takes_teacher,
    fingerprint,
    takes_teacher,
)
from prograd_fast.methods.clap import CLAP, ZSLP
from prograd_fast.methods.class_features import Context
from prograd_fast.methods.clip_adapter import CLIPAdapter
from prograd_fast.methods.cocoop import CoCoOp
from prograd_fast.methods.coop import CoOp
from prograd_fast.methods.crops import Crops
from prograd_fast.methods.cross_modal import CrossModal
from prograd_fast.methods.dept import DePT
from prograd_fast.methods.gda import GDA
from prograd_fast.methods.kgcoop import KgCoOp
from prograd_fast.methods.lasp import LASP
from prograd_fast.methods.linear_probe import LinearProbe
from prograd_fast.methods.lpplusplus import LPPlusPlus
from prograd_fast.methods.nfl import NFL
from prograd_fast.methods.proda import ProDA
from prograd_fast.methods.prograd import ProGradCoOp
from prograd_fast.methods.proker import ProKeR
from prograd_fast.methods.prolip import ProLIP
from prograd_fast.methods.prompt_tuning import PromptTuning, PromptTuningLearner
from prograd_fast.methods.promptsrc import PromptSRC
from prograd_fast.methods.subpt import SubPT, SubPTNFL
from prograd_fast.methods.taskres import TaskRes
from prograd_fast.methods.tcp import TCP
from prograd_fast.methods.tip_adapter import TipAdapter, TipAdapterF
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
    TCP,
    DePT,
    ATPrompt,
    AnchorOPT,
    ProDA,
    XERMClassifier,
    TipAdapter,
    TipAdapterF,
    CLIPAdapter,
    TaskRes,
    CrossModal,
    LPPlusPlus,
    ZSLP,
    CLAP,
    GDA,
    ProKeR,
    ProLIP,
)


def method_named(name: str, settings: Mapping[str, Any], preset: str | None = None) -> Method:
    """The method of this name with these settings; see `Method.of`.

    Raises:
        ValueError: there is no such method, setting or preset.
    """
    return method_kind(name).of(settings, preset)


def method_kind(name: str) -> type[Method]:
    """The method of this name, without settings; ValueError if there is none."""
    for method in METHODS:
        if method.name == name:
            return method
    raise ValueError(f"unknown method {name!r}; expected one of {', '.join(method.name for method in METHODS)}")


__all__ = [
    "CLAP",
    "GDA",
    "LASP",
    "METHODS",
    "NFL",
    "TCP",
    "ZSLP",
    "ATPrompt",
    "AnchorOPT",
    "CLIPAdapter",
    "CoCoOp",
    "CoOp",
    "Context",
    "Crops",
    "CrossModal",
    "DePT",
    "GradientLearner",
    "GradientMethod",
    "KgCoOp",
    "LPPlusPlus",
    "Learner",
    "LinearProbe",
    "Losses",
    "Method",
    "ProDA",
    "ProGradCoOp",
    "ProKeR",
    "ProLIP",
    "PromptSRC",
    "PromptTuning",
    "PromptTuningLearner",
    "Scores",
    "SubPT",
    "SubPTNFL",
    "Task",
    "TaskRes",
    "Teacher",
    "TipAdapter",
    "TipAdapterF",
    "Variational",
    "XERMClassifier",
    "ZeroShot",
    "check_takes_teacher",
    "fingerprint",
    "method_kind",
    "method_named",
    "takes_teacher",
]
