"""The kernels of csrc/cpu: C++ for AVX-512, AVX2 and any other CPU, chosen when the process starts."""

import importlib
from collections.abc import Callable
from typing import Any

EXTENSION: Any
try:
    EXTENSION = importlib.import_module("prograd_fast._C")
except ImportError as error:  # no compiler at installation, or another PyTorch since
    EXTENSION = None
    _ERROR = str(error)
else:
    # the fused updates without the dispatcher, for `prograd_fast.backends.update_operator`
    project_adamw_ = EXTENSION.project_adamw_
    project_sgd_ = EXTENSION.project_sgd_


def missing() -> str | None:
    """Why the kernels cannot run here; None where they can."""
    if EXTENSION is None:
        return (
            f"the C++ kernels are not built for this PyTorch ({_ERROR}). "
            "Install CMake and a C++ compiler, and run: "
            "pip install --no-build-isolation --force-reinstall --no-deps prograd-fast"
        )
    return None


def device() -> str:
    """The type of device they run on."""
    return "cpu"


def register() -> Callable[[], None]:
    """Register them with the dispatcher; the result takes them out again."""
    EXTENSION.register_cpu()
    return EXTENSION.unregister_cpu


def build_facts() -> dict[str, Any]:
    """How they were compiled: "compiler", "flags", "torch", "instruction_sets", and the "instruction_set" in use."""
    facts: dict[str, Any] = EXTENSION.build_facts()
    return facts
