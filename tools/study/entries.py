"""What the study compares, and the settings that each entry may choose from.

An entry is a method with a λ: 0 is the method as it is, 1 has ProGrad's projection, 0.5 removes half of a conflict.
CoOp with λ = 1 is ProGrad. Methods without a second gradient have one entry, with None.

All take `STEPS` steps on all pictures at once. Each entry may try `BUDGET` settings: twelve rates, or six for each of
two values of the method's own main weight, around the rate that is the method's default.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from open_clip import IMAGENET_CLASSNAMES

from prograd_fast.methods import (
    NFL,
    AnchorOPT,
    CoCoOp,
    CrossModal,
    GradientMethod,
    LinearProbe,
    Method,
    ProDA,
    ProGradCoOp,
    SubPT,
    SubPTNFL,
    Variational,
)
from prograd_fast.methods.cached_head import TrainedHead
from prograd_fast.methods.prompt_tuning import PromptTuning

NOVEL = tuple(IMAGENET_CLASSNAMES[::50])  # names without pictures
LAMBDAS = (0.0, 0.5, 1.0)
STEPS, BUDGET = 30, 12
# the method's own main weight: its default, and another value, a quarter of it where no other was published
WEIGHTS: Mapping[str, tuple[str, Any]] = {
    "kgcoop": ("weight", 2.0),
    "lasp": ("alpha", 1.25),
    "nfl": ("weight", 0.25),
    "subpt-nfl": ("weight", 0.25),
    "variational": ("kl_weight", 0.00025),
    "promptsrc": ("text_weight", 6.25),
    "tcp": ("weight", 2.0),
    "dept": ("head_weight", 0.175),
    "anchoropt": ("kd_weight", 0.25),
    "proda": ("alpha", 0.025),
    "xerm": ("gamma", 0.5),
    "tip-adapter-f": ("alpha", 0.3),
    "clip-adapter": ("ratio", 0.6),
    "taskres": ("scale", 1.0),
    "cross-modal": ("wise", 0.5),
    "clap": ("weights", "balanced"),
    "prolip": ("weight", 1 / 256),
}
# as many steps as the others, or the same share of them; fewer contexts where a step has several
SHORTER: Mapping[type[Method], Mapping[str, Any]] = {
    CoCoOp: {"epochs": 1, "batch_size": 8},  # each picture has prompts of its own: about as many steps as the others
    SubPT: {"early_epochs": STEPS // 5, "rank": STEPS // 10},
    SubPTNFL: {"early_epochs": STEPS // 5, "rank": STEPS // 10, "novel_names": NOVEL},
    AnchorOPT: {"anchor_epochs": STEPS // 2},
    CrossModal: {"warmup_steps": STEPS // 6},
    Variational: {"samples": 2},
    ProDA: {"n_contexts": 4},
    NFL: {"novel_names": NOVEL},
}


@dataclass(frozen=True)
class Entry:
    """A method with a λ, None where it has none."""

    kind: type[Method]
    lambda_: float | None

    @property
    def key(self) -> str:
        """Its name in files."""
        return self.kind.name if self.lambda_ is None else f"{self.kind.name} {self.lambda_:g}"

    def method(self, **settings: Any) -> Method:
        """The method with these settings, and with the steps of the study."""
        if not issubclass(self.kind, GradientMethod):
            return self.kind(**settings)
        steps = {"epochs": STEPS, "batch_size": None} if self.kind is not CoCoOp else {}
        own = SHORTER.get(self.kind, {})
        lambda_ = {} if self.lambda_ is None else {"lambda_": self.lambda_}
        return self.kind(**{**steps, **own, **lambda_, **settings})

    def candidates(self) -> list[dict[str, Any]]:
        """The settings that may be chosen, the lowest rate first; the defaults alone where there is no choice."""
        name = "C" if self.kind is LinearProbe else "lr"
        if not issubclass(self.kind, GradientMethod | LinearProbe):
            return [{}]
        default = getattr(self.kind(), name)
        if self.kind.name not in WEIGHTS:
            return [{name: _rounded(default * 2.0**k)} for k in range(-4, 8)]
        weight, other = WEIGHTS[self.kind.name]
        return [
            {name: _rounded(default * 4.0**k), weight: value}
            for k in range(-2, 4)
            for value in (getattr(self.kind(), weight), other)
        ]


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")


def entries(kind: type[Method]) -> list[Entry]:
    """The entries of a method; none for ProGrad, which is CoOp's with λ = 1."""
    if kind is ProGradCoOp:
        return []
    if not takes_projection(kind):
        return [Entry(kind, None)]
    return [Entry(kind, lambda_) for lambda_ in LAMBDAS]


def takes_projection(kind: type[Method]) -> bool:
    """Whether a method has a λ in this study."""
    if not issubclass(kind, PromptTuning | TrainedHead):
        return False
    try:
        replace(kind(), lambda_=1.0)
    except ValueError:  # its gradient has another rule
        return False
    return True
