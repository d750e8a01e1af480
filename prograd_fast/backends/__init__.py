"""The choice of the kernels that run the operators of `prograd_fast.ops`, for each type of device.

A backend is a module of this package with three functions:

    missing() -> str | None       None where it can run here, else one sentence: why not, and what to do
    device() -> str               the type of device whose operators it runs, "cpu" or "cuda"
    register() -> () -> None      register its kernels with the dispatcher; the result takes them out again

The best one for CPUs is in use from the start, that for GPUs as soon as PyTorch initialises CUDA: an import that did so
would break launchers that fork. "reference" is what is left without one.
"""

import importlib
from collections.abc import Callable
from typing import Any

import torch

import prograd_fast.ops  # noqa: F401  the operators exist before their kernels

_NAMES = ("reference", "cuda", "triton", "cpu")

_in_use: dict[str, tuple[str, Callable[[], None]]] = {}  # by device: the backend, and what takes it out


def _module(name: str) -> Any:
    return importlib.import_module(f"prograd_fast.backends.{name}")


def missing(name: str) -> str | None:
    """Say why a backend cannot run here.

    Args:
        name: "reference", "cpu", "triton" or "cuda".

    Returns:
        One sentence that says what to do, or None where the backend can run.

    Raises:
        ValueError: there is no backend of this name.
    """
    if name not in _NAMES:
        raise ValueError(f"name: expected one of {', '.join(_NAMES)}, got {name!r}.")
    return None if name == "reference" else _module(name).missing()


def available() -> list[str]:
    """The backends that can run here, "reference" first. Initialises CUDA where there is a GPU."""
    return [name for name in _NAMES if missing(name) is None]


def active() -> dict[str, str]:
    """The backend in use for each type of device, such as {"cpu": "cpu", "cuda": "reference"}.

    Initialises CUDA where there is a GPU.
    """
    _choose_for_gpus()
    return {device: _in_use[device][0] if device in _in_use else "reference" for device in ("cpu", "cuda")}


def use(name: str) -> None:
    """Run the operators on a backend from now on, in the whole process.

    Args:
        name: a backend from `available()`, for its type of device; "reference" for every device.

    Raises:
        ValueError: there is no backend of this name.
        RuntimeError: it cannot run here.
    """
    reason = missing(name)
    if reason is not None:
        raise RuntimeError(f"{name}: {reason}")
    _choose_for_gpus()  # before, so that it does not replace this choice later
    _replace(name)


def _replace(name: str) -> None:
    devices = list(_in_use) if name == "reference" else [_module(name).device()]
    for device in devices:
        if device in _in_use:
            _in_use.pop(device)[1]()
    if name != "reference":
        backend = _module(name)
        _in_use[backend.device()] = (name, backend.register())


def _choose_for_gpus() -> None:
    if torch.cuda.is_available():
        torch.cuda.init()


def _use_best(*names: str) -> None:
    for name in names:
        if missing(name) is None and _module(name).device() not in _in_use:
            _replace(name)


_use_best("cpu")
if torch.version.cuda is not None:
    # without a GPU the modules of its backends are not even imported: Triton takes a second, and may be missing
    torch.cuda._lazy_call(lambda: _use_best("cuda", "triton"))
