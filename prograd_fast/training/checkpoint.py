"""Checkpoints: whatever a `state_dict()` holds, as safetensors with JSON in the header. Nothing is pickled.

A state is a tree of dicts, lists and tuples with tensors, numbers, strings, booleans and None in it.
"""

import hashlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prograd_fast.files import digest, replacing, safetensors_package

_HEADER = "prograd_fast_checkpoint"


class Checkpoints:
    """Where a run keeps its state, and when.

    Args:
        path: of the file.
        run: what the state belongs to, JSON: only a run of the same goes on from it.
        every: seconds between two checkpoints; what a killed run loses at most.
    """

    def __init__(self, path: Path, run: Mapping[str, Any], every: float = 60.0) -> None:
        self.path, self.run, self.every = path, run, every
        self._last = time.monotonic()

    @property
    def due(self) -> bool:
        """Whether it is time for another one."""
        return time.monotonic() - self._last >= self.every

    def save(self, state: Any) -> None:
        """See `save_checkpoint`."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        save_checkpoint(self.path, state, self.run)
        self._last = time.monotonic()

    def load(self) -> Any:
        """The state to go on from, None if there is none yet. ValueError as `load_checkpoint`."""
        return load_checkpoint(self.path, self.run) if self.path.exists() else None


def save_checkpoint(path: Path, state: Any, run: Mapping[str, Any]) -> None:
    """Write a state, all of it or nothing; an older checkpoint stays until the new one is whole.

    Args:
        path: where to.
        state: the tree.
        run: what the state belongs to, as JSON has it; `load_checkpoint` asks for the same.

    Raises:
        OSError: the disk is full, the folder cannot be written.
        TypeError: something in the tree is neither a tensor nor JSON.
    """
    tensors: dict[str, Tensor] = {}
    told = json.dumps({"state": _pack(state, tensors), "run": dict(run)})
    header = {"told": told, "digest": _digest(told, tensors)}
    content = safetensors_package().torch.save(tensors, {_HEADER: json.dumps(header)})
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def load_checkpoint(path: Path, run: Mapping[str, Any]) -> Any:
    """Read a state, its tensors on the CPU.

    Args:
        path: from where.
        run: what is about to go on from it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged or something else, or it belongs to another run: names what differs.
    """
    package = safetensors_package()
    try:
        with package.safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {})[_HEADER])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  it is no dict
        if header["digest"] != _digest(header["told"], tensors):
            raise ValueError("its checksum differs")
        told = json.loads(header["told"])
        state, saved = _unpack(told["state"], tensors), told["run"]
    except (package.SafetensorError, KeyError, TypeError, ValueError, IndexError) as error:
        raise ValueError(
            f"{path} is not a whole checkpoint ({type(error).__name__}: {error}); delete it to begin anew"
        ) from error
    for name, value in json.loads(json.dumps(dict(run))).items():
        if saved.get(name) != value:
            raise ValueError(
                f"{path} belongs to another run: its {name} is {_short(saved.get(name))}, this one's {_short(value)}; "
                "resume with the same options, or choose another folder"
            )
    return state


def _pack(value: Any, tensors: dict[str, Tensor]) -> Any:
    """The tree as JSON; its tensors go into `tensors`."""
    if isinstance(value, Tensor):
        name, copy = str(len(tensors)), value.detach().cpu().clone()  # views must not drag their whole buffer along
        tensors[name] = copy.contiguous()
        return {"tensor": [name, copy.stride()]}
    if isinstance(value, Mapping):  # JSON's keys are strings, torch.optim's are not
        return {"dict": [[key, _pack(item, tensors)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        return {type(value).__name__: [_pack(item, tensors) for item in value]}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a checkpoint cannot hold {type(value).__name__}; expected tensors, numbers, text, lists, dicts")


def _unpack(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    match kind:
        case "tensor":
            name, stride = content  # products with a matrix of another layout round otherwise
            return torch.empty_strided(tensors[name].shape, stride, dtype=tensors[name].dtype).copy_(tensors[name])
        case "dict":
            return {key: _unpack(item, tensors) for key, item in content}
        case "list":
            return [_unpack(item, tensors) for item in content]
        case "tuple":
            return tuple(_unpack(item, tensors) for item in content)
    raise ValueError(f"unknown kind {kind!r}")


def _digest(told: str, tensors: Mapping[str, Tensor]) -> str:
    return hashlib.sha256((told + digest(*(tensors[name] for name in sorted(tensors)))).encode()).hexdigest()


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
