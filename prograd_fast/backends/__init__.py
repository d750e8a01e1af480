"""The choice of the kernels that run the operators of `prograd_fast.ops`: for CPUs one backend, for GPUs by operator.

A backend is a module of this package with three functions:

    missing() -> str | None       None where it can run here, else one sentence: why not, and what to do
    device() -> str               the type of device whose operators it runs, "cpu" or "cuda"
    register() -> () -> None      register its kernels with the dispatcher; the result takes them out again. Those for
                                  GPUs take the families of operators that are meant, `families=`

The best one for CPUs is in use from the start, those for GPUs as soon as PyTorch initialises CUDA: an import that did
so would break launchers that fork. `choice` says which of them runs which operator, and why. "reference" is what is
left without one.
"""

import importlib
import logging
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch

import prograd_fast.ops  # noqa: F401  the operators exist before their kernels
from prograd_fast.backends import extension
from prograd_fast.backends.choice import FAMILIES

_NAMES = ("reference", "cuda", "triton", "cpu")


class _InUse(NamedTuple):
    by_family: dict[str, str]
    take_out: list[Callable[[], None]]


_in_use: dict[str, _InUse] = {}  # by device


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

    Where several share the operators of a device, their names are joined, "cuda + triton"; `by_operator` tells which
    has which. Initialises CUDA where there is a GPU.
    """
    _choose_for_gpus()
    found = {device: set(_in_use[device].by_family.values()) if device in _in_use else () for device in ("cpu", "cuda")}
    return {
        device: " + ".join(name for name in _NAMES if name in names) or "reference" for device, names in found.items()
    }


def by_operator(device: str = "cuda") -> dict[str, str]:
    """The backend in use for each operator that writes its results.

    Initialises CUDA where there is a GPU.

    Args:
        device: the type of device, "cuda" or "cpu".

    Returns:
        For example {"dual_loss_out": "cuda", "gelu_out": "triton", ...}.
    """
    _choose_for_gpus()
    by_family = _in_use[device].by_family if device in _in_use else {}
    return {
        operator: by_family.get(name, "reference") for name, family in FAMILIES.items() for operator in family.operators
    }


def use(name: str) -> None:
    """Run the operators on a backend from now on, in the whole process.

    Args:
        name: a backend from `available()`, for its type of device; "reference" for every device. A backend for GPUs
            takes all operators that it has, whatever the order in `choice` is; those that it lacks stay with the first
            of their own list that can run here.

    Raises:
        ValueError: there is no backend of this name.
        RuntimeError: it cannot run here.
    """
    reason = missing(name)
    if reason is not None:
        raise RuntimeError(f"{name}: {reason}")
    _choose_for_gpus()  # before, so that it does not replace this choice later
    if name == "reference":
        for device in list(_in_use):
            _take_out(device)
    elif _module(name).device() == "cpu":
        _use_on_cpus()
    else:
        _use_on_gpus({family: (name, *others.backends) for family, others in FAMILIES.items()})


def _use_on_cpus() -> None:
    _take_out("cpu")
    _in_use["cpu"] = _InUse(dict.fromkeys(FAMILIES, "cpu"), [_module("cpu").register()])


def _use_on_gpus(orders: dict[str, tuple[str, ...]]) -> None:
    """Register, for each family, the first backend of its order that has it and can run here."""
    _take_out("cuda")
    can_run = cache(lambda name: missing(name) is None)  # asked only of those that are wanted
    families: dict[str, list[str]] = {}
    for family, order in orders.items():
        for name in order:
            if name in FAMILIES[family].backends and can_run(name):
                families.setdefault(name, []).append(family)
                break
    if families:
        _in_use["cuda"] = in_use = _InUse({}, [])
        try:
            for name, mine in families.items():
                in_use.take_out.append(_module(name).register(families=mine))
                in_use.by_family.update(dict.fromkeys(mine, name))
        except BaseException:  # what is registered twice is an error, too
            _take_out("cuda")
            raise


def _take_out(device: str) -> None:
    if device in _in_use:
        for take_out in _in_use.pop(device).take_out:
            take_out()


def _choose_for_gpus() -> None:
    if torch.cuda.is_available():
        torch.cuda.init()


if (_why_not := missing("cpu")) is None:
    _use_on_cpus()
elif not extension.unwanted():
    logging.getLogger("prograd_fast").warning("prograd_fast runs in plain PyTorch: %s", _why_not)
if torch.version.cuda is not None:
    # without a GPU the modules of its backends are not even imported: Triton takes a second, and may be missing
    torch.cuda._lazy_call(lambda: _use_on_gpus({name: tuple(family.backends) for name, family in FAMILIES.items()}))
