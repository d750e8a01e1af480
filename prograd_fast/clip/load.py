"""Load the model to adapt, by name: one that ships with the package, or any open_clip model."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prograd_fast.clip.digest import model_digest
from prograd_fast.clip.emoji_lite import NAMES, load_emoji_lite
from prograd_fast.clip.tokens import Tokenizer
from prograd_fast.files.reading import read_json

_TORCH = tuple(int(part) for part in torch.__version__.split(".")[:2])


@dataclass(frozen=True)
class LoadedClip:
    """An image-text model with all that belongs to it.

    Attributes:
        name: as given to `load_model`, local paths made absolute.
        pretrained: likewise.
        model: In evaluation mode, frozen, on `device`.
        tokenizer: Sequence of texts -> (texts, context length) int64 token ids.
        preprocess: PIL picture -> (3, H, W) float32.
        device: Where the model is.
        max_memory: Bytes that the text tower's activations may take, None for no limit (`PromptedCLIP`).
    """

    name: str
    pretrained: str | None
    model: Any  # an open_clip model: a Module whose methods type checkers cannot see
    tokenizer: Tokenizer
    preprocess: Callable[[Any], Tensor]
    device: torch.device
    max_memory: float | None = None

    @cached_property
    def digest(self) -> str:
        """See `model_digest`."""
        return model_digest(self.model)

    @property
    def transform(self) -> str:
        """The name of `preprocess`, for records."""
        function = self.preprocess
        name = getattr(function, "__qualname__", None)
        return f"{function.__module__}.{name}" if name else " ".join(repr(function).split())


def load_model(name: str, pretrained: str | None = None, device: str | None = None) -> LoadedClip:
    """Load a model, frozen.

    Args:
        name: "emoji-lite", "emoji-lite-named", or what `open_clip.create_model_and_transforms` takes: an architecture
            such as "ViT-B-16", "local-dir:FOLDER", "hf-hub:OWNER/REPO".
        pretrained: For an open_clip architecture: a checkpoint file, or the tag of weights that open_clip downloads.
        device: A torch device; None takes the GPU if there is one.

    Files of weights are read without running anything in them: safetensors, NumPy arrays, and, with torch 2.10 and
    newer, pickles that hold tensors alone. TorchScript archives and other pickles are refused.

    Returns:
        The model with tokenizer and preprocessing, float32.

    Raises:
        ValueError: Unknown name, device or tag; no weights asked for; weights that do not load, do not fit, or hold
            more than numbers.
    """
    where = _device(device)
    if name in NAMES:
        if pretrained is not None:
            raise ValueError(f"model {name!r} brings its own weights, got pretrained={pretrained!r}; leave it out")
        model, tokenizer, preprocess = load_emoji_lite(name)
        return LoadedClip(name, None, model.to(where), tokenizer, preprocess, where)
    import open_clip

    if ":" in name:
        if pretrained is not None:
            raise ValueError(f"model {name!r} brings its own weights, got pretrained={pretrained!r}; leave it out")
    elif name not in open_clip.list_models():
        raise ValueError(
            f"unknown model {name!r}; expected {', '.join(NAMES)}, local-dir:FOLDER, hf-hub:OWNER/REPO "
            "or a name from open_clip.list_models()"
        )
    elif pretrained is None:
        tags = open_clip.list_pretrained_tags_by_model(name)
        raise ValueError(
            f"model {name!r} needs weights: give --pretrained as a checkpoint file or one of {', '.join(tags)}"
        )
    # Run records name the model: as absolute paths, so that they can be used from any folder.
    if name.startswith("local-dir:"):
        name = f"local-dir:{Path(name.removeprefix('local-dir:')).resolve()}"
    elif pretrained is not None and pretrained not in open_clip.list_pretrained_tags_by_model(name):
        pretrained = str(Path(pretrained).resolve()) if Path(pretrained).is_file() else pretrained
    try:
        _check_config(name)
        with _numbers_only():
            model, _, preprocess = open_clip.create_model_and_transforms(
                name, pretrained=pretrained, device=where, pretrained_text=False, require_pretrained=True
            )
            tokenizer = open_clip.get_tokenizer(name)
    except Exception as error:  # open_clip, torch and the download each raise their own kinds
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"cannot load model {name!r} with weights {pretrained!r}: {reason}") from error
    model.eval().requires_grad_(False)
    return LoadedClip(name, pretrained, model, tokenizer, preprocess, where)


def is_known_model(name: str, pretrained: str | None) -> bool:
    """Return whether a model is embedded, or in open_clip's own list of weights.

    Any other name is a file, a folder or a repository. The writer of a record can name one and put anything there.
    """
    if name in NAMES:
        return pretrained is None
    import open_clip

    return name in open_clip.list_models() and pretrained in open_clip.list_pretrained_tags_by_model(name)


def _check_config(name: str) -> None:
    """ValueError if a folder has pipes for weights, or a configuration asks for code (`trust_remote_code`)."""
    import open_clip

    if name.startswith("local-dir:"):
        folder = Path(name.removeprefix("local-dir:"))
        read_json(folder / "open_clip_config.json")
        for file in folder.iterdir():
            if file.suffix in (".safetensors", ".bin", ".pth") and not file.is_file():
                raise ValueError(f"{file} is not a regular file")
    elif not name.startswith("hf-hub:"):
        return
    text = open_clip.get_model_config(name).get("text_cfg", {})
    if "trust_remote_code" in text.get("tokenizer_kwargs", {}):
        raise ValueError("its tokenizer is a program (trust_remote_code), which is not run")


@contextmanager
def _numbers_only() -> Iterator[None]:
    """Meanwhile torch.load gives tensors or raises an error; no pickle and no TorchScript runs."""
    load, load_script = torch.load, torch.jit.load

    def load_tensors(file: Any, *args: Any, **options: Any) -> Any:
        if _TORCH < (2, 10):
            raise ValueError(
                f"{file} is not safetensors, and pickles are read with torch 2.10 and newer only (before, even tensors "
                "could corrupt memory: CVE-2026-24747); update torch, or save the weights with safetensors"
            )
        try:
            return load(file, *args, **{**options, "weights_only": True})
        except Exception as error:
            raise ValueError(
                f"{file} is damaged or holds more than weights, which is not run; save the model's state_dict() with "
                "safetensors"
            ) from error

    def refuse(file: Any, *args: Any, **options: Any) -> Any:
        raise ValueError(f"{file} is a TorchScript archive, a program, which is not run")

    torch.load, torch.jit.load = load_tensors, refuse  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.load, torch.jit.load = load, load_script


def _device(name: str | None) -> torch.device:
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.zeros((), device=device).item()  # a device without values, such as meta, refuses
    except (RuntimeError, AssertionError) as error:  # AssertionError: "Torch not compiled with CUDA enabled"
        raise ValueError(f"cannot use device {name!r}: {str(error).splitlines()[0]}") from error
    return device
