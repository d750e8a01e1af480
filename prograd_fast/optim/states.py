"""Parameters, gradients and states that do not fit each other: told by name, before a step moves anything."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def check_parameter(
    groups: list[dict[str, Any]], param: Tensor, gradients: Mapping[str, Tensor], state: Mapping[str, Any]
) -> None:
    """Raise RuntimeError unless all that belongs to a parameter has its shape and device.

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
    for name, value in {**gradients, **state}.items():
        problem = _problem(param, name, value)
        if problem is not None:
            raise RuntimeError(
                f"step: {name} of {_which(groups, param)}: {problem}. "
                "Load the state of the same parameters, or build a new optimizer after a parameter has changed."
            )


def _problem(param: Tensor, name: str, value: Any) -> str | None:
    if not isinstance(value, Tensor):
        return f"expected a tensor, got {'none' if value is None else type(value).__name__}"
    if value.layout != torch.strided or not value.is_floating_point():
        return f"expected a dense tensor of floating point, got {value.layout}, {value.dtype}"
    if name == "step":  # goes to the parameter's device by itself
        return None if value.numel() == 1 else f"expected one number, got shape {tuple(value.shape)}"
    if value.shape != param.shape:
        return f"expected shape {tuple(param.shape)}, got {tuple(value.shape)}"
    if value.device != param.device:
        return f"expected device {param.device}, got {value.device}"
    return None


def _which(groups: list[dict[str, Any]], param: Tensor) -> str:
    """The place of a parameter, and its name where the optimizer was given names."""
    for g, group in enumerate(groups):
        for i, candidate in enumerate(group["params"]):
            if candidate is param:
                names = group.get("param_names")
                named = f" ({names[i]})" if names else ""
                return f"parameter {i} of group {g}{named}, shape {tuple(param.shape)} on {param.device}"
    return "a parameter"
