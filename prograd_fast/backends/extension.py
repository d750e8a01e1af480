"""The compiled module `prograd_fast._C`: kernels for CPUs, for GPUs where CUDA was there, and the eager fast path."""

import importlib
from typing import Any

from prograd_fast.ops.registry import SHORTCUTS

EXTENSION: Any
try:
    EXTENSION = importlib.import_module("prograd_fast._C")
except ImportError as error:  # no compiler at installation, or another PyTorch since
    EXTENSION = None
    _ERROR = str(error)
else:
    SHORTCUTS["dual_loss"] = EXTENSION.dual_loss  # calls whatever kernel is in use
    SHORTCUTS["fit"] = EXTENSION.fit
    SHORTCUTS["release_graph"] = EXTENSION.release_graph
    SHORTCUTS["release_memory"] = EXTENSION.release_memory


def missing() -> str | None:
    """Say why the module is not there; None where it is."""
    if EXTENSION is None:
        return (
            f"the C++ kernels are not built for this PyTorch ({_ERROR}). "
            "Install CMake and a C++ compiler, and run: "
            "pip install --no-build-isolation --force-reinstall --no-deps prograd-fast"
        )
    return None


def build_facts() -> dict[str, Any]:
    """Tell how it was compiled: "compiler", "flags", "torch", "instruction_sets", and the "instruction_set" in use."""
    facts: dict[str, Any] = EXTENSION.build_facts()
    return facts
