"""Weights from a file, known by its content: the container, whose names they have, and the activation."""

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prograd_fast.clip.pretrained import huggingface
from prograd_fast.clip.pretrained.archive import Archive
from prograd_fast.clip.pretrained.state import find_state_dict, is_openais
from prograd_fast.files.reading import check_kinds, check_regular, read_json

MAX_WEIGHTS = 1 << 40  # bytes: no model has as many
_TORCH = tuple(int(part) for part in torch.__version__.split(".")[:2])


@dataclass(frozen=True)
class Weights:
    """The weights of one CLIP model.

    Attributes:
        state: tensors by open_clip's names.
        source: "OpenAI", "Hugging Face" or "open_clip": whose names they had in the file.
        quick_gelu: whether they were trained with QuickGELU; None: nothing tells.
        pixels: mean and standard deviation of the pixels that they were trained on; None: nothing tells.
    """

    state: dict[str, Tensor]
    source: str
    quick_gelu: bool | None = None
    pixels: tuple[tuple[float, ...], tuple[float, ...]] | None = None


def read_weights(file: Path) -> Weights:
    """Read a file of weights without running anything in it, whatever its name ends in.

    Safetensors; torch.save's archives, of a state dict, of a checkpoint around it or of a whole model; TorchScript.
    Names may have prefixes ("module.", "model.clip."); OpenAI's, open_clip's and Hugging Face's are known.

    Raises:
        ValueError: the file is none of these, is damaged, or holds no CLIP model.
        OSError: it is not there.
    """
    check_regular(file, MAX_WEIGHTS)
    try:
        return _read(file)
    except ValueError:
        raise
    except Exception as error:  # what a file from anybody holds can fail in any way
        raise ValueError(f"{file} is damaged or cannot be read: {type(error).__name__}: {error}") from error


def _read(file: Path) -> Weights:
    tree, classes = _open(file)
    state = find_state_dict(tree)
    if huggingface.is_huggingface(state):
        quick_gelu = _quick_gelu_of(classes)
        return Weights(
            huggingface.to_open_clip(state),
            "Hugging Face",
            _configured_activation(file.parent / "config.json") if quick_gelu is None else quick_gelu,
            _configured_pixels(file.parent / "preprocessor_config.json"),
        )
    if is_openais(tree):
        return Weights(state, "OpenAI", quick_gelu=True)
    return Weights(state, "open_clip", _quick_gelu_of(classes))


def _open(file: Path) -> tuple[Any, frozenset[str]]:
    """The content of a file, and the names of the classes in it."""
    with file.open("rb") as content:
        start = content.read(9)
    if start[8:] == b"{":
        from safetensors.torch import load_file

        return load_file(file), frozenset()
    if zipfile.is_zipfile(file):
        archive = Archive.open(file)
        return archive.tree, archive.classes
    return _read_legacy(file), frozenset()


def _read_legacy(file: Path) -> Any:
    """A pickle from before torch 1.6, which torch itself has to read."""
    if _TORCH < (2, 10):
        raise ValueError(
            f"{file} is neither safetensors nor a zip archive of torch.save, and other pickles are read with torch "
            "2.10 and newer only (before, even tensors could corrupt memory: CVE-2026-24747); update torch, or save "
            "the weights with safetensors"
        )
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(
            f"{file} is damaged or holds more than weights, which is not run; save the model's state_dict() with "
            "safetensors"
        ) from error


def _quick_gelu_of(classes: frozenset[str]) -> bool | None:
    """The activation by the modules of a whole model; a state dict has no modules."""
    kinds = {name.rsplit(".", 1)[-1] for name in classes}
    return (
        True if kinds & {"QuickGELU", "QuickGELUActivation"} else False if kinds & {"GELU", "GELUActivation"} else None
    )


def _configured_activation(config: Path) -> bool | None:
    """The activation that Hugging Face's file beside the weights tells; ValueError if its towers' differ."""
    if not config.is_file():
        return None
    settings = read_json(config)
    check_kinds(settings, {"model_type": str, "text_config": dict | None, "vision_config": dict | None})
    if settings["model_type"] != "clip":
        return None
    # what is not written there is transformers' default
    towers = [settings.get(f"{tower}_config") or {} for tower in ("text", "vision")]
    text, vision = (tower.get("hidden_act", "quick_gelu") for tower in towers)
    if text != vision:
        raise ValueError(
            f"{config}: the towers have different activations, {text} and {vision}, which open_clip has not"
        )
    return {"quick_gelu": True, "gelu": False}.get(text)


def _configured_pixels(config: Path) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    if not config.is_file():
        return None
    settings = read_json(config)
    check_kinds(settings, {"image_mean": list, "image_std": list})
    return tuple(settings["image_mean"]), tuple(settings["image_std"])
