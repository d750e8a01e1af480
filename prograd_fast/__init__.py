"""Prompt tuning of CLIP models that keeps what they knew: ProGrad optimizers, losses and a prompt-tuning engine."""

from prograd_fast.terminal import interrupts

if interrupts.is_command():  # before PyTorch is imported, which takes seconds
    interrupts.end_in_one_line()

import importlib
from importlib.metadata import version
from types import ModuleType
from typing import TYPE_CHECKING

from prograd_fast import backends, functional, losses, reference, rules
from prograd_fast.doctor import show_config
from prograd_fast.installation import to_install
from prograd_fast.losses import DualLoss
from prograd_fast.optim import Conflict, ProGrad, ProGradAdamW, ProGradSGD

__version__ = version("prograd-fast")

__all__ = [
    "Conflict",
    "DualLoss",
    "ProGrad",
    "ProGradAdamW",
    "ProGradSGD",
    "__version__",
    "backends",
    "clip",
    "data",
    "functional",
    "losses",
    "reference",
    "rules",
    "show_config",
]

if TYPE_CHECKING:
    from prograd_fast import clip, data
else:
    # the core needs torch alone; these rooms bring in what they need when they are used
    def __getattr__(name: str) -> ModuleType:
        if name in ("clip", "data"):
            try:
                return importlib.import_module(f"prograd_fast.{name}")
            except ModuleNotFoundError as error:
                raise ModuleNotFoundError(
                    f"prograd_fast.{name} needs {error.name}, which is not installed: {to_install('clip')}",
                    name=error.name,
                ) from error
        raise AttributeError(f"module 'prograd_fast' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
