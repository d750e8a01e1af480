"""Ways to adapt an image-text model to a few labelled pictures, one file each."""

from prograd_fast.methods.base import Learner, Method, Scores, Task
from prograd_fast.methods.coop import CoOp
from prograd_fast.methods.linear_probe import LinearProbe
from prograd_fast.methods.prograd import ProGrad
from prograd_fast.methods.prompt_tuning import PromptTuning, PromptTuningLearner, Step, TunedPrompt
from prograd_fast.methods.zero_shot import ZeroShot, ZeroShotLearner

METHODS: tuple[type[Method], ...] = (ZeroShot, LinearProbe, CoOp, ProGrad)  # in the order of tables and plots

__all__ = [
    "METHODS",
    "CoOp",
    "Learner",
    "LinearProbe",
    "Method",
    "ProGrad",
    "PromptTuning",
    "PromptTuningLearner",
    "Scores",
    "Step",
    "Task",
    "TunedPrompt",
    "ZeroShot",
    "ZeroShotLearner",
]
