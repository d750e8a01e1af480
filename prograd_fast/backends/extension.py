"""The compiled module `prograd_fast._C`: kernels for CPUs, for GPUs where CUDA was there, and the eager fast path."""

import importlib
from pathlib import Path
from typing import Any

import torch

from prograd_fast.installation import to_compile
from prograd_fast.ops.registry import SHORTCUTS

_NOT_COMPILED = Path(__file__).parents[1] / "not_compiled.txt"  # setup.py writes why


def _load() -> tuple[Any, str | None]:
    """The module, or None and why it cannot be used."""
    try:
        module = importlib.import_module("prograd_fast._C")
    except ModuleNotFoundError:
        why = _NOT_COMPILED.read_text() if _NOT_COMPILED.exists() else "nobody has tried"
        return None, f"the C++ kernels were not compiled: {why}"
    except ImportError as error:  # symbols of another PyTorch, or libraries of CUDA that this one does not have
        what = str(error).removeprefix(f"{error.path}: ")[:100]  # names of symbols are long
        return None, f"the C++ kernels were compiled for another PyTorch, and this one cannot load them: {what}"
    # the loader compares names; what is behind them may change from minor release to minor release
    compiled_for, here = ([*map(int, v.split(".")[:2])] for v in (module.build_facts()["torch"], torch.__version__))
    if compiled_for != here:
        meant = ".".join(map(str, compiled_for))
        return None, f"the C++ kernels were compiled for PyTorch {meant}, and this is {torch.__version__}"
    return module, None


EXTENSION, _WHY_NOT = _load()
if EXTENSION is not None:
    SHORTCUTS["dual_loss"] = EXTENSION.dual_loss  # calls whatever kernel is in use
    SHORTCUTS["empty"] = EXTENSION.empty
    SHORTCUTS["fit"] = EXTENSION.fit
    SHORTCUTS["release_graph"] = EXTENSION.release_graph
    SHORTCUTS["release_memory"] = EXTENSION.release_memory
    SHORTCUTS["weighted_sum"] = EXTENSION.weighted_sum


def missing() -> str | None:
    """Say why the module cannot be used, and what to do; None where it can."""
    return None if _WHY_NOT is None else f"{_WHY_NOT}. With a C++ compiler at hand, run: {to_compile()}"


def unwanted() -> bool:
    """Whether whoever installed the package asked for none: PROGRAD_FAST_BUILD=none."""
    return _NOT_COMPILED.exists() and "PROGRAD_FAST_BUILD=none" in _NOT_COMPILED.read_text()


def build_facts() -> dict[str, Any]:
    """Tell how it was compiled: "compiler", "flags", "torch", "instruction_sets", and the "instruction_set" in use."""
    facts: dict[str, Any] = EXTENSION.build_facts()
    return facts
