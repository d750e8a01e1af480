"""The visual projection, and what an image tower gives before it."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

# open_clip's vision transformers, OpenAI's ResNets, timm's towers with a linear head, as emoji-lite, or with an MLP
_PLACES = ("visual.proj", "visual.attnpool.c_proj", "visual.head.proj", "visual.head.mlp.fc2")


def visual_projection(model: nn.Module) -> tuple[Tensor, Tensor | None]:
    """P (Do, D) and the bias (D,) or None of the last step of an image tower, z = x P + bias.

    Raises:
        ValueError: the tower has no such projection.
    """
    _, projection = _found(model)
    if isinstance(projection, nn.Linear):
        return projection.weight.detach().T, None if projection.bias is None else projection.bias.detach()
    return projection.detach(), None


def before_projection(model: nn.Module) -> nn.Module:
    """A copy of the model, on the same weights, whose `encode_image` gives x, before the projection.

    Where the projection has a bias, it gives (x, 1). So z has the same direction if a row is scaled, and unit rows can
    be kept. Attribute `image_width` of the copy is the width of a row.

    Raises:
        ValueError: as `visual_projection`.
    """
    place, projection = _found(model)
    weight, bias = visual_projection(model)
    width = len(weight)
    if isinstance(projection, nn.Linear):
        passing = nn.Linear(width, width + (bias is not None), bias=bias is not None)
        with torch.no_grad():
            passing.weight.copy_(torch.eye(*passing.weight.shape))
            if passing.bias is not None:
                passing.bias.copy_(torch.eye(width + 1)[-1])
        replacement: Any = passing.to(weight).requires_grad_(False)
    else:
        replacement = nn.Parameter(torch.eye(width).to(weight), requires_grad=False)
    twin: Any = _with(model, place.split("."), replacement)
    twin.image_width = width + (bias is not None)
    return twin


def _found(model: nn.Module) -> tuple[str, Any]:
    """Where the projection is, and what: a parameter or a linear layer."""
    for place in _PLACES:
        value: Any = model
        for name in place.split("."):
            value = getattr(value, name, None)
        if isinstance(value, nn.Linear | nn.Parameter) and getattr(value, "ndim", 2) == 2:
            return place, value
    raise ValueError(
        f"the image tower {type(getattr(model, 'visual', model)).__name__} has no visual projection among "
        f"{', '.join(_PLACES)}: expected one to train; take another method, or an open_clip model that has one"
    )


def _with(module: nn.Module, path: list[str], value: Any) -> nn.Module:
    """A module that shares all with another one but for one parameter or module in it."""
    twin = copy.copy(module)
    twin._modules, twin._parameters = dict(module._modules), dict(module._parameters)
    name, *rest = path
    old: Any = module._modules.get(name)
    setattr(twin, name, _with(old, rest, value) if rest else value)
    return twin
