"""Checkpoints: whatever a `state_dict()` holds, as safetensors with JSON in the header. Nothing is pickled.

A state is a tree of dicts, lists and tuples with tensors, numbers, strings, booleans and None in it.
"""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prograd_fast.files.reading import check_kinds, parse_json, short
from prograd_fast.files.tensors import read_sealed, write_sealed

_HEADER = "prograd_fast_checkpoint"
_CONTENTS = {  # facts that are digests, or too long, which tell a reader nothing
    "weights": "its model has other weights",
    "transform": "its model takes pictures in another way",
    "pictures": "it learned from other pictures",
    "tests": "it was tested on other pictures",
    "elsewhere": "it was tested on other sets beside its own",
}


class Checkpoints:
    """The place where a run keeps its state, and the times.

    Args:
        path: of the file.
        run: what the state belongs to, JSON: only a run of the same goes on from it.
        every: seconds between two checkpoints; what a killed run loses at most.
        last: whether the trained state is kept too, for what comes after training and can fail.
    """

    def __init__(self, path: Path, run: Mapping[str, Any], every: float = 60.0, last: bool = False) -> None:
        self.path, self.run, self.every, self.last = path, run, every, last
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
    text = json.dumps({"state": _pack(state, tensors), "run": dict(run)})
    write_sealed(path, _HEADER, text, tensors)


def load_checkpoint(path: Path, run: Mapping[str, Any]) -> Any:
    """Read a state, its tensors on the CPU.

    Args:
        path: from where.
        run: what is about to go on from it.

    Raises:
        OSError: there is no such file, or it cannot be read.
        ValueError: the file is damaged or something else, or it belongs to another run: names what differs.
    """
    try:
        text, tensors = read_sealed(path, _HEADER)
        content = parse_json(text, finite=False)
        check_kinds(content, {"run": dict})
        state = _unpack(content["state"], tensors)
    except (OSError, ImportError):
        raise
    except Exception as error:  # what a file from anybody holds can fail in any way
        raise ValueError(
            f"{path} is not a whole checkpoint ({type(error).__name__}: {error}); delete it to begin anew"
        ) from error
    difference = differing(content["run"], run)
    if difference:
        raise ValueError(
            f"{path} belongs to another run: {difference}; resume with the same options, or choose another folder"
        )
    return state


def differing(found: Mapping[str, Any], run: Mapping[str, Any]) -> str | None:
    """Say how a run's facts on disk differ from those of the run at hand, for a message; None if they do not."""
    for name, value in json.loads(json.dumps(dict(run))).items():
        own = found.get(name)
        if own == value:
            continue
        if name in _CONTENTS:
            return _CONTENTS[name]
        if isinstance(own, dict) and isinstance(value, dict):  # of many settings, the first that differs
            key = next(key for key in own | value if own.get(key, own) != value.get(key, value))
            name, own, value = f"{name}.{key}", own.get(key), value.get(key)
        return f"its {name} is {short(own)}, this one's {short(value)}"
    return None


def check_alike(found: Any, wanted: Any, where: str) -> None:
    """ValueError unless a state has the form of another: names, lengths, types; shapes and dtypes of tensors."""
    for kind in (Tensor, Mapping, list | tuple, bool, int | float, str, type(None)):
        if isinstance(wanted, kind):
            if not isinstance(found, kind) or (isinstance(found, bool) and kind is not bool):
                raise ValueError(f"{where} is {type(found).__name__}, expected {type(wanted).__name__}")
            break
    if isinstance(wanted, Tensor):
        form, expected = (f"{tensor.dtype} of shape {tuple(tensor.shape)}" for tensor in (found, wanted))
        if form != expected:
            raise ValueError(f"{where} is {form}, expected {expected}")
    elif isinstance(wanted, Mapping):
        if found.keys() != wanted.keys():
            raise ValueError(f"{where} has {short(list(found))}, expected {short(list(wanted))}")
        for name, value in wanted.items():
            check_alike(found[name], value, f"{where}.{name}")
    elif isinstance(wanted, list | tuple):
        if len(found) != len(wanted):
            raise ValueError(f"{where} has {len(found)} entries, expected {len(wanted)}")
        for i, value in enumerate(wanted):
            check_alike(found[i], value, f"{where}[{i}]")


def check_memory(found: dict[str, Any], own: dict[str, Tensor]) -> None:
    """ValueError unless a memory has the form of a learner's own: as many entries, some of which grow along an axis."""
    if len(found) != len(own):
        raise ValueError(f"learner has {short(list(found))}, expected {short(list(own))}")
    for name, tensor in found.items():
        like = own.get(name, tensor)  # a later stage remembers other things
        grown = tensor.shape[:1] + like.shape[1:] if isinstance(tensor, Tensor) and like.ndim > 1 else like.shape
        check_alike(tensor, like.new_empty(grown), f"learner.{name}")


def check_optimizer(found: dict[str, Any], optimizer: torch.optim.Optimizer) -> None:
    """ValueError unless a state is of this optimizer: torch takes states of any shape."""
    own = optimizer.state_dict()
    states = dict(found).pop("state")  # of any form yet
    check_alike(found, own | {"state": states}, "optimizer")
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for i, state in states.items():
        for name, value in state.items():
            if value is not None and name != "step":
                check_alike(value, parameters[i].detach().cpu(), f"optimizer.state[{i}].{name}")


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
            name, stride = content
            return _laid_out(tensors[name], stride)
        case "dict":
            return {key: _unpack(item, tensors) for key, item in content}
        case "list":
            return [_unpack(item, tensors) for item in content]
        case "tuple":
            return tuple(_unpack(item, tensors) for item in content)
    raise ValueError(f"unknown kind {kind!r}")


def _laid_out(tensor: Tensor, stride: list[int]) -> Tensor:
    """A tensor with the strides that it had: products with a matrix of another layout round otherwise."""
    extent = 1 + sum((size - 1) * step for size, step in zip(tensor.shape, stride, strict=True))
    if any(step < 0 for step in stride) or (tensor.numel() and extent != tensor.numel()):
        raise ValueError(f"strides {short(stride)} for shape {tuple(tensor.shape)}")
    return torch.empty_strided(tensor.shape, stride, dtype=tensor.dtype).copy_(tensor)
