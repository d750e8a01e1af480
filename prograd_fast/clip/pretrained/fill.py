"""Weights into a model of open_clip: all of them, or one line that says what does not fit."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

_NAMED = 2  # tensors that a message names


def fill(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Load weights into a model.

    Raises:
        ValueError: they are those of another architecture. Unlike in open_clip, positions of another number are not
            interpolated: what a frozen tower would make of them is worse than what it was trained for.
    """
    from open_clip.convert import convert_state_dict
    from open_clip.model import convert_to_custom_text_state_dict

    clip: Any = model
    state = convert_state_dict(clip, dict(weights))  # Apple's MobileCLIP
    if "positional_embedding" in state and not hasattr(model, "positional_embedding"):
        state = convert_to_custom_text_state_dict(state)
    own = model.state_dict()
    for name in ("logit_scale", "logit_bias"):  # a number, or a list of one
        if name in state and name in own and state[name].numel() == own[name].numel():
            state[name] = state[name].reshape(own[name].shape)
    misfit = _misfit(own, state)
    if misfit:
        raise ValueError(f"the weights do not fit this architecture{_remedy(own, state)}: {misfit}")
    model.load_state_dict(state)


def _misfit(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> str:
    """How a state dict differs from a model's own, in a few words; empty if it does not."""
    other = [name for name in own if name in state and state[name].shape != own[name].shape]
    shapes = [f"{name} is {_shape(state[name])}, the model's {_shape(own[name])}" for name in other]
    missing = [name for name in own if name not in state]
    unknown = [name for name in state if name not in own]
    parts = {"of another shape": shapes, "missing": missing, "unknown": unknown}
    return "; ".join(f"{len(found)} {what} ({_few(found)})" for what, found in parts.items() if found)


def _remedy(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> str:
    """The architectures of open_clip that weights of a vision transformer are for, as far as their sizes tell."""
    import open_clip

    names = ("visual.conv1.weight", "visual.positional_embedding", "text_projection")
    if all(name in own and name in state and own[name].shape == state[name].shape for name in names):
        return ""  # of the same sizes
    patches, positions, projection = (state.get(name) for name in names)
    if patches is None or positions is None or projection is None or patches.ndim != 4 or projection.ndim != 2:
        return ""
    patch = patches.shape[-1]
    sizes = (len(patches), patch, patch * round((len(positions) - 1) ** 0.5), *projection.shape)
    fitting = []
    for name in open_clip.list_models():
        config = open_clip.get_model_config(name)
        vision, text = config["vision_cfg"], config["text_cfg"]
        theirs = (*(vision.get(part) for part in ("width", "patch_size", "image_size")), text.get("width"))
        if (*theirs, config["embed_dim"]) == sizes and "multimodal_cfg" not in config:
            fitting.append(name)
    return f"; give --model {' or '.join(fitting[:_NAMED])}" if fitting else ""


def _few(found: list[str]) -> str:
    return ", ".join(found[:_NAMED]) + (", ..." if len(found) > _NAMED else "")


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a number"
