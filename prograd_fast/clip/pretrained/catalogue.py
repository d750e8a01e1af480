"""The models that there are to choose from: their sizes, their weights, and what is on disk already."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prograd_fast.clip.emoji_lite import NAMES, PICTURE_SIZE, build_model, embedded_config
from prograd_fast.clip.pretrained.names import known_architectures

USUAL = (  # models to begin with
    "RN50",
    "ViT-B-32",
    "ViT-B-16",
    "ViT-L-14",
    "ViT-L-14-336",
    "ViT-H-14",
    "ViT-B-16-SigLIP",
    "ViT-B-16-SigLIP2",
)
_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin")


@dataclass(frozen=True)
class Entry:
    """One model of the list.

    Attributes:
        name: what --model takes.
        image_size: pixels a side.
        tags: what --pretrained takes beside a file; empty if the model brings its weights.
        on_disk: tags whose weights are there, and the files.
    """

    name: str
    image_size: int
    tags: tuple[str, ...]
    on_disk: dict[str, Path]


def usual_entries() -> list[Entry]:
    """The embedded models, some to begin with, and whatever is on disk."""
    others = [_entry(name) for name in known_architectures() if name not in USUAL]
    return [*map(_entry, NAMES), *map(_entry, USUAL), *(entry for entry in others if entry.on_disk)]


def matching_entries(part: str) -> list[Entry]:
    """The models with these signs in their names, in any case."""
    return [_entry(name) for name in (*NAMES, *known_architectures()) if part.lower() in name.lower()]


def count_parameters(name: str) -> int | None:
    """Build a model without memory for its weights, and count its parameters.

    None where only a download tells: the sizes of Hugging Face's towers are not in open_clip.
    """
    import open_clip
    import torch

    if name in NAMES:
        with torch.device("meta"):
            return sum(p.numel() for p in build_model(embedded_config(name)).parameters())
    config: dict[str, Any] = open_clip.get_model_config(name)
    if "hf_model_name" in config["text_cfg"]:
        return None
    custom = config.pop("custom_text", False)
    kind = open_clip.CoCa if "multimodal_cfg" in config else open_clip.CustomTextCLIP if custom else open_clip.CLIP
    with torch.device("meta"):
        return sum(p.numel() for p in kind(**config).parameters())


def _entry(name: str) -> Entry:
    if name in NAMES:
        return Entry(name, PICTURE_SIZE, (), {})
    import open_clip
    from open_clip.pretrained import get_pretrained_cfg

    tags = tuple(open_clip.list_pretrained_tags_by_model(name))
    files = {tag: _file_of(get_pretrained_cfg(name, tag)) for tag in tags}
    size = open_clip.get_model_config(name)["vision_cfg"].get("image_size", 224)
    size = max(size) if isinstance(size, list | tuple) else size
    return Entry(name, size, tags, {tag: file for tag, file in files.items() if file is not None})


def _file_of(weights: dict[str, Any]) -> Path | None:
    """The file of downloaded weights, where open_clip keeps it."""
    from huggingface_hub import try_to_load_from_cache

    if url := weights.get("url"):
        file = Path("~/.cache/clip").expanduser() / os.path.basename(url)
        if file.is_file():
            return file
    if repository := weights.get("hf_hub"):
        owner, name = os.path.split(repository)
        for candidate in (name,) if name else _WEIGHTS:
            found = try_to_load_from_cache(owner, candidate)
            if isinstance(found, str):
                return Path(found)
    return None
