"""What the commands have in common: their options, and what they do before and around the work."""

import os
import shlex
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from prograd_fast.printable import printable

if TYPE_CHECKING:
    from prograd_fast.clip import LoadedClip
    from prograd_fast.methods import Method

ROOM = 1 << 20  # bytes that a run takes, at the least that is worth beginning
MOST_MEMORY = 1e6  # gigabytes: more is a slip of the pen

console = Console(highlight=False)

Data = Annotated[
    str,
    typer.Option(
        metavar="emoji|clipart|DIR", help="An embedded set, or a folder with one folder of pictures per class."
    ),
]
Device = Annotated[
    str | None, typer.Option(help="Torch device, such as cpu or cuda:1. Default: the GPU if there is one.")
]
Cache = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Keep image features here. Default: prograd-fast in your folder for caches."),
]
NoCache = Annotated[bool, typer.Option("--no-cache", help="Encode every picture anew, and keep no features.")]
Model = Annotated[str, typer.Option(metavar="NAME", help="emoji-lite, emoji-lite-named, or a model name of open_clip.")]
Pretrained = Annotated[
    str | None, typer.Option(metavar="FILE|TAG", help="Weights of an open_clip model: a file, or a tag to download.")
]
RunModel = Annotated[
    str | None, typer.Option("--model", metavar="NAME", help="Use this model instead of the one that the run names.")
]
RunPretrained = Annotated[
    str | None,
    typer.Option("--pretrained", metavar="FILE|TAG", help="Use these weights instead of those that the run names."),
]
Trust = Annotated[
    bool,
    typer.Option(
        "--trust", help="Load the model that the run names even if it is a file, a folder or somebody's repository."
    ),
]
Precision = Annotated[str, typer.Option(metavar="fp32|bf16|fp16", help="Autocast of the training step.")]
Views = Annotated[
    int | None,
    typer.Option(
        min=0,
        help="Train on random crops and flips: so many stored views of each picture in turn; 0: new ones each epoch. "
        "Default: the pictures as they are.",
    ),
]

MaxMemory = Annotated[
    float | None,
    typer.Option(
        metavar="GB",
        help="What the text tower may take while it learns: with very many classes it then computes them in parts, and "
        "twice. Default: no limit.",
    ),
]


def say(text: str) -> None:
    """Print one line, as long as it is."""
    print(printable(text))


def open_model(name: str, pretrained: str | None, device: str | None, max_memory: float | None = None) -> "LoadedClip":
    """`load_model`, with the number of threads that suits it, and a limit in GB."""
    if max_memory is not None and not 0 < max_memory <= MOST_MEMORY:
        raise ValueError(f"--max-memory: expected gigabytes, more than 0 and at most {MOST_MEMORY:g}, got {max_memory}")
    import torch

    from prograd_fast.clip import load_model
    from prograd_fast.clip.emoji_lite import NAMES

    if name in NAMES:
        # Its matrices are too small to share: threads mostly wait for each other, for very long on a busy machine.
        torch.set_num_threads(1)
    clip = load_model(name, pretrained, device)
    return clip if max_memory is None else replace(clip, max_memory=max_memory * 1e9)


def open_model_of(
    run: Path, record: dict[str, Any], model: str | None, pretrained: str | None, trust: bool, device: str | None
) -> "LoadedClip":
    """The model to use a run with: what the command line names, or else what the record names and nobody can forge."""
    from prograd_fast.clip import is_known_model

    named = record["model"]["name"], record["model"]["pretrained"]
    given = model is not None or pretrained is not None
    name, weights = (named[0] if model is None else model, pretrained) if given else named
    if not (given or trust or is_known_model(name, weights)):
        typed = [argument for argument in sys.argv[1:] if argument != "--debug"]  # which may stand before the command
        command = shlex.join(["prograd-fast", *typed[:1], "--trust", *typed[1:]])
        raise ValueError(
            f"{run} names {_model(*named)}, which is neither embedded nor on open_clip's list: whoever made the run "
            f"may have put anything there. If you trust it, type: {command}. Or give --model and --pretrained"
        )
    clip = open_model(name, weights, device)
    if (clip.name, clip.pretrained) != named:
        used = _model(clip.name, clip.pretrained)
        print(printable(f"{run} was made with {_model(*named)}, and is used with {used} now."), file=sys.stderr)
    return clip


def _model(name: str, pretrained: str | None) -> str:
    return f"the model {name!r}" + ("" if pretrained is None else f" with weights {pretrained!r}")


def check_text_tower(clip: "LoadedClip", methods: Sequence["Method"]) -> None:
    """ValueError where a method would put context tokens into a text tower that cannot take them."""
    from prograd_fast.clip import TextTower
    from prograd_fast.methods import PromptTuning

    if any(isinstance(method, PromptTuning) for method in methods):
        try:
            TextTower(clip.model)
        except TypeError as error:
            raise ValueError(f"{clip.name}: {error}") from error


def cache_folder(folder: Path | None, no_cache: bool) -> Path | None:
    """Where to keep image features, None for nowhere. A folder that was asked for must be writable."""
    from prograd_fast.clip.feature_cache import default_cache

    if folder is None:
        return None if no_cache else default_cache()
    if no_cache:
        raise ValueError("--cache and --no-cache exclude each other")
    check_writable(folder, "--cache")
    return folder


def check_writable(folder: Path, option: str = "--out") -> None:
    """Before any work: the folder can be written to, or made, and its disk has room for a run."""
    remedy = f"choose another {option}"
    if "\0" in str(folder):
        raise ValueError(f"cannot write to {folder}: no name on a disk holds a NUL character; {remedy}")
    existing = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    if not existing.is_dir():
        raise ValueError(f"cannot write to {folder}: {existing} is not a folder that you may write to; {remedy}")
    try:
        with tempfile.TemporaryFile(dir=existing) as file:  # asks the system, which knows more than permissions
            file.write(bytes(ROOM))
    except OSError as error:
        raise ValueError(
            f"cannot write to {folder}: {existing} has no room or is not a folder that you may write to "
            f"({error.strerror}); free {ROOM >> 20} MiB there, or {remedy}"
        ) from error
