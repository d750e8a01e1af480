"""The state dict of the CLIP model in whatever was read from a file: found, and freed of the names around it."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from prograd_fast.clip.pretrained.archive import Inert, StoredTensor

# what checkpoints call a state dict: PyTorch Lightning and open_clip, Hugging Face's and other trainers
_ENTRIES = ("state_dict", "model_state_dict", "model")
_TOWERS = ("visual.", "vision_model.", "image_encoder.")  # open_clip and OpenAI, Hugging Face, Apple
_SCALE = "logit_scale"  # every CLIP has one, at the top level
_NOT_WEIGHTS = ("input_resolution", "context_length", "vocab_size")  # OpenAI's archives keep these as tensors
_BUFFERS = ("attn_mask", "position_ids")  # computed, not learned; some versions save them
_MOST_TENSORS = 1 << 20


def find_state_dict(tree: Any) -> dict[str, Tensor]:
    """The tensors of a CLIP model by name, without prefixes such as "module." or "model.clip.".

    Raises:
        ValueError: there is no CLIP model, or more than one.
    """
    found = _tensors(tree)
    prefixes = [
        prefix
        for prefix in (name.removesuffix(_SCALE) for name in found if name.endswith(_SCALE))
        if any(name.startswith(tuple(prefix + tower for tower in _TOWERS)) for name in found)
    ]
    if not prefixes:
        raise ValueError(f"it holds no CLIP model, but {_description(tree, found)}")
    if len(prefixes) > 1:
        raise ValueError(f"it holds {len(prefixes)} models, under {', '.join(map(repr, prefixes))}; save one of them")
    (prefix,) = prefixes
    own = {name.removeprefix(prefix): value for name, value in found.items() if name.startswith(prefix)}
    return {
        name: value.read() if isinstance(value, StoredTensor) else value
        for name, value in own.items()
        if name.rsplit(".", 1)[-1] not in (*_BUFFERS, *_NOT_WEIGHTS)
    }


def is_openais(tree: Any) -> bool:
    """Whether the state dict has the entries that only OpenAI's own archives have."""
    return all(any(name.endswith(entry) for name in _tensors(tree)) for entry in _NOT_WEIGHTS)


def _tensors(tree: Any) -> dict[str, Any]:
    """Tensors by name, of a state dict, of an entry that is one, or of a pickled or scripted module."""
    if isinstance(tree, Inert):
        found: dict[str, Any] = {}
        _collect(tree, "", found, set())
        return found
    if not isinstance(tree, Mapping):
        return {}
    for entry in _ENTRIES:
        if isinstance(tree.get(entry), Mapping | Inert):
            return _tensors(tree[entry])
    return {str(name): value for name, value in tree.items() if isinstance(value, Tensor | StoredTensor)}


def _collect(module: Inert, prefix: str, found: dict[str, Any], seen: set[int]) -> None:
    if id(module) in seen or not isinstance(module.state, dict) or len(found) > _MOST_TENSORS:
        return
    seen.add(id(module))
    members = module.state
    if isinstance(members.get("_modules"), dict):  # a pickled torch.nn.Module, not a scripted one
        members = {**members["_parameters"], **members["_buffers"], **members["_modules"]}
    for name, value in members.items():
        if isinstance(value, Tensor | StoredTensor):
            found[f"{prefix}{name}"] = value
        elif isinstance(value, Inert):
            _collect(value, f"{prefix}{name}.", found, seen)


def _description(tree: Any, found: Mapping[str, Any]) -> str:
    if found:
        names = ", ".join(list(found)[:3])
        return f"{len(found)} tensors such as {names}"
    if isinstance(tree, Mapping) and tree:
        return f"no tensors, but the entries {', '.join(map(str, list(tree)[:5]))}"
    return f"an object of type {type(tree).__name__}" if tree is not None else "nothing"
