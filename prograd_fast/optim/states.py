"""Checks before a step that parameters, gradients and states fit each other; an error names the one that does not."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from prograd_fast.ops.checks import check_memory
from prograd_fast.ops.common import STORAGE
from prograd_fast.ops.registry import SHORTCUTS
from prograd_fast.optim.shards import layout_of


def check_parameter(
    groups: list[dict[str, Any]], param: Tensor, gradients: Mapping[str, Tensor], state: Mapping[str, Any]
) -> None:
    """Raise RuntimeError unless a parameter can be written to, and all that belongs to it has its shape and device.

    A state of another shape comes with `load_state_dict` from another model, and with `param.data = ...`. The kernels
    check what they are given too, list by list; they do not know whose state it is.

    Args:
        groups: the parameter groups of the optimizer, to tell which parameter it is.
        param: the parameter.
        gradients: its gradients by name.
        state: what the update reads of its state, by name; "step" is a single number.

    Raises:
        RuntimeError: names the parameter, what was expected and what came.
    """
    for name, value in {"values": param, **gradients, **state}.items():
        problem = _why_not(param, name, value, written=name not in gradients)
        if problem is not None:
            raise RuntimeError(
                f"step: {name} of {_place_of(groups, param)}: {problem}. "
                "Load the state of the same parameters, or build a new optimizer after a parameter has changed."
            )


def all_fit(
    params: Sequence[Tensor], gradients: Sequence[tuple[Tensor, ...]], states: Sequence[dict[str, Any]]
) -> bool:
    """Return whether all parameters pass `check_parameter`, in a twentieth of its time.

    False where only `check_parameter` can tell, or the extension is not built.
    """
    shortcut = SHORTCUTS.get("fit")
    if shortcut is None or torch.compiler.is_compiling():
        return False
    belongings, steps = [], []
    for own, state in zip(gradients, states, strict=True):
        belongings.append([*own, *(value for name, value in state.items() if name != "step")])
        if "step" in state:
            steps.append(state["step"])
    try:
        fit: bool = shortcut(params, belongings, steps)
    except TypeError:  # something is no tensor
        return False
    return fit


def check_learning_rate(lr: Any, param: Tensor) -> None:
    """Raise RuntimeError for the learning rate of a group that no update of its parameters could read."""
    if isinstance(lr, Tensor):
        readable = lr.numel() == 1 and lr.layout == torch.strided and lr.dtype in STORAGE
        if not readable or (lr.is_meta and not param.is_meta):
            raise RuntimeError(
                "step: lr of a parameter group: expected one number of floating point with a value, got shape "
                f"{tuple(lr.shape)}, {lr.layout}, {lr.dtype} on {lr.device}. Set group['lr'] anew."
            )


def _why_not(param: Tensor, name: str, value: Any, *, written: bool) -> str | None:
    if not isinstance(value, Tensor):
        return f"expected a tensor, got {'none' if value is None else type(value).__name__}"
    counter = name == "step"
    if value.layout != torch.strided or value.dtype not in (STORAGE[:2] if counter else STORAGE):
        kinds = "float64 or float32" if counter else "floating point"
        return f"expected a dense tensor of {kinds}, got {value.layout}, {value.dtype}"
    if counter:  # goes to the parameter's device by itself
        if value.numel() != 1:
            return f"expected one number, got shape {tuple(value.shape)}"
        if value.is_meta and not param.is_meta:
            return f"expected device {param.device}, got {value.device}"
    elif value.shape != param.shape:
        return f"expected shape {tuple(param.shape)}, got {tuple(value.shape)}"
    elif type(param) is not torch.nn.Parameter and layout_of(value) != layout_of(param):
        return f"expected the placements of the parameter, {_placed(param)}, got {_placed(value)}"
    elif value.device != param.device:
        return f"expected device {param.device}, got {value.device}"
    if torch.compiler.is_compiling() or type(value) not in (Tensor, torch.nn.Parameter):
        return None  # its memory is not its own
    return _problem_of_memory(value, written=written)


def _placed(tensor: Tensor) -> str:
    layout = layout_of(tensor)
    return "a whole tensor" if layout is None else f"{layout[1]} on {layout[0]}"


def _problem_of_memory(value: Tensor, *, written: bool) -> str | None:
    if not value.data_ptr() and value.numel() and not value.is_meta and (written or not value._is_zerotensor()):
        return f"expected {value.nbytes} bytes of memory, got none: it was freed"
    if written and value.is_neg():
        return "expected a tensor that can be written to, got a negated view: call .clone() first"
    if written and not value.is_contiguous():
        try:
            check_memory("memory", value)
        except ValueError as error:
            return str(error).removeprefix("memory: ").rstrip(".")
    return None


def _place_of(groups: list[dict[str, Any]], param: Tensor) -> str:
    """The place of a parameter, and its name where the optimizer was given names."""
    for g, group in enumerate(groups):
        for i, candidate in enumerate(group["params"]):
            if candidate is param:
                names = group.get("param_names")
                named = f" ({names[i]})" if names else ""
                return f"parameter {i} of group {g}{named}, shape {tuple(param.shape)} on {param.device}"
    return "a parameter"
