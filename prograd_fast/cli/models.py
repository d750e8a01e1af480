"""The model of a command: loaded by name, or by the name that a saved run holds."""

import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prograd_fast.terminal.printable import printable

if TYPE_CHECKING:
    from prograd_fast.clip import LoadedClip
    from prograd_fast.methods import Method

MOST_MEMORY = 1e6  # gigabytes: more is a slip of the pen


def open_model(name: str, pretrained: str | None, device: str | None, max_memory: float | None = None) -> "LoadedClip":
    """`load_model`, with the number of threads that suits it, and a limit in GB."""
    if max_memory is not None and not 0 < max_memory <= MOST_MEMORY:
        raise ValueError(f"--max-memory: expected gigabytes, more than 0 and at most {MOST_MEMORY:g}, got {max_memory}")
    import torch

    from prograd_fast.clip import load_model
    from prograd_fast.clip.emoji_lite import NAMES

    if name in NAMES:
        # The matrices are too small to share. Threads would mostly wait for each other, very long on a busy machine.
        torch.set_num_threads(1)
    clip = load_model(name, pretrained, device)
    return clip if max_memory is None else replace(clip, max_memory=max_memory * 1e9)


def check_teacher_options(model: str | None, pretrained: str | None, views: int | None) -> None:
    """ValueError where --teacher-model lacks beside its weights, or stands beside --views."""
    if model is None and pretrained is not None:
        raise ValueError("--teacher-pretrained: expected --teacher-model NAME beside it")
    if model is not None and views is not None:
        raise ValueError("--teacher-model and --views exclude each other")


def open_teacher(name: str | None, pretrained: str | None, device: str | None) -> "LoadedClip | None":
    """The model of --teacher-model, if there is one; an error says that it is the teacher's."""
    if name is None:
        return None
    try:
        return open_model(name, pretrained, device)
    except ValueError as error:
        raise ValueError(f"--teacher-model: {error}") from error


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
            f"{run} names {_description(*named)}, which is neither embedded nor on open_clip's list: whoever made the "
            f"run may have put anything there. If you trust it, type: {command}. Or give --model and --pretrained"
        )
    clip = open_model(name, weights, device)
    if (clip.name, clip.pretrained) != named:
        used = _description(clip.name, clip.pretrained)
        print(printable(f"{run} was made with {_description(*named)}, and is used with {used} now."), file=sys.stderr)
    return clip


def _description(name: str, pretrained: str | None) -> str:
    return f"the model {name!r}" + ("" if pretrained is None else f" with weights {pretrained!r}")


def check_text_tower(clip: "LoadedClip", methods: Sequence["Method"]) -> None:
    """ValueError where a method would put context tokens into a text tower that cannot take them."""
    from prograd_fast.clip import TextTower
    from prograd_fast.methods import PromptTuning

    reason = TextTower(clip.model).closed_reason
    if reason is not None and any(isinstance(method, PromptTuning) for method in methods):
        raise ValueError(
            f"{clip.name}: context tokens cannot be put between the words: {reason}; take a --method without a "
            "context, such as zero-shot or linear-probe, or another --model"
        )
