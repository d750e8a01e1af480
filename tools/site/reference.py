"""The reference: a page for each public module, with every public name and, of a class, every method."""

import importlib
import inspect
import pkgutil
import re
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from prograd_fast import integrations, neighbours

# Modules whose names users import, in the order in which a name finds its place: it is described in the first one.
ROOMS = (
    "prograd_fast",
    "prograd_fast.functional",
    "prograd_fast.losses",
    "prograd_fast.rules",
    "prograd_fast.optim",
    "prograd_fast.clip",
    "prograd_fast.data",
    "prograd_fast.methods",
    "prograd_fast.training",
    "prograd_fast.report",
    "prograd_fast.reproduce",
    "prograd_fast.export",
    "prograd_fast.backends",
    "prograd_fast.reference",
    *(f"prograd_fast.integrations.{found.name}" for found in pkgutil.iter_modules(integrations.__path__)),
    *(f"prograd_fast.neighbours.{found.name}" for found in pkgutil.iter_modules(neighbours.__path__)),
)
_LONGEST = 200  # characters of a constant
# Classes of other packages whose methods have their own documentation.
_OUTSIDE = "Optimizer, Module, Function, tuple, dict, Mapping, Protocol, Generic, ABC, object"


def public_names(module: ModuleType) -> list[str]:
    """The public names of a module: `__all__`, or what is defined in it without an underscore."""
    named = getattr(module, "__all__", None)
    if named is None:
        own = (name for name, thing in vars(module).items() if getattr(thing, "__module__", "") == module.__name__)
        named = [name for name in own if not name.startswith("_")]
    return list(named)


def write(folder: Path) -> None:
    """Write the pages and their list.

    Args:
        folder: Their folder in the site's source.
    """
    folder.mkdir(parents=True)
    places: dict[int, str] = {}
    for room in ROOMS:
        (folder / f"{room}.rst").write_text(_page(room, places), encoding="utf-8")
    (folder / "index.rst").write_text(_index(), encoding="utf-8")


def _index() -> str:
    lines = [*_title("Python reference"), "Every public name, by the module that it is imported from.", ""]
    for room in ROOMS:
        about = (inspect.getdoc(importlib.import_module(room)) or "").splitlines()[0]
        lines += [f":doc:`{room}`", f"    {_escaped(about)}", ""]
    return "\n".join([*lines, ".. toctree::", "    :hidden:", "", *(f"    {room}" for room in ROOMS), ""])


def _page(room: str, places: dict[int, str]) -> str:
    module = importlib.import_module(room)
    lines = [*_title(room), f".. automodule:: {room}", "    :no-members:", "", f".. py:currentmodule:: {room}", ""]
    for name in public_names(module):
        thing = getattr(module, name)
        if inspect.ismodule(thing):
            lines += [*_title(name, "-"), f"See :doc:`{thing.__name__}`.", ""]
        elif _has_a_name(thing) and id(thing) in places:
            lines += [*_title(name, "-"), f"See :py:obj:`~{places[id(thing)]}`.", ""]
        else:
            places[id(thing)] = f"{room}.{name}"
            lines += [*_title(name, "-"), *_description(room, name, thing), ""]
    return "\n".join(lines)


def _description(room: str, name: str, thing: Any) -> list[str]:
    if inspect.isclass(thing):
        options = [":members:", f":inherited-members: {_OUTSIDE}"]
        described = [f".. autoclass:: {room}.{name}", *(f"    {option}" for option in options)]
        if issubclass(thing, torch.optim.Optimizer):
            methods = [m for m in _of_optimizer() if getattr(thing, m) is getattr(torch.optim.Optimizer, m)]
            described += ["", f"    As in ``torch.optim.Optimizer``: {', '.join(f'``{m}``' for m in methods)}."]
        return described
    if callable(thing) and hasattr(thing, "__code__"):
        return [f".. autofunction:: {room}.{name}"]
    return [f".. py:data:: {name}", f"    :type: {type(thing).__name__}", "", f"    {_value(thing)}"]


def _value(thing: Any) -> str:
    """A constant, or the keys of a long mapping, or the length of another long one."""
    text = repr(thing)
    if len(text) > _LONGEST:
        text = ", ".join(map(str, thing)) if isinstance(thing, Mapping) else f"{len(thing)} entries"
    return f"``{text}``"


def _of_optimizer() -> list[str]:
    return [m for m, value in vars(torch.optim.Optimizer).items() if not m.startswith("_") and callable(value)]


def _has_a_name(thing: Any) -> bool:
    """Whether a thing is a class or a function: equal numbers and strings are one object by chance."""
    return inspect.isclass(thing) or inspect.isfunction(thing)


def _title(text: str, line: str = "=") -> list[str]:
    text = _escaped(text)
    return [text, line * len(text), ""]


def _escaped(text: str) -> str:
    return re.sub(r"(?<=\w)_(?!\w)", r"\\_", text.replace("`", "``").replace("*", "\\*"))
