"""The options that several commands have."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

# panels of the help pages, after the one of what has none
TESTS = "What it learns from, and what it is tested on"
TRAINING = "How it learns"
MEMORY_AND_SPEED = "Memory and speed"

_DATA = "Use this folder, with a folder per class; or emoji or clipart, which are embedded."
_ROOT = "Find a set of `data list` in this folder."
_DEVICE = "Compute on this torch device: cpu, cuda:1. Default: the GPU if there is one."
_CACHE = "Keep image features here. Default: prograd-fast in your folder for caches."
_NO_CACHE = "Encode every picture again, and keep no features."
_MODEL = "Use this model; for photos, ViT-B-16. `prograd-fast models` lists them. Default: emoji-lite."
_PRETRAINED = "Load these weights into it: a file, or a tag to download, such as openai."
_TRUST = "Load the run's model even if it is a file or a stranger's."
_VIEWS = "Train on N stored random crops and flips of each picture in turn; 0: on a new one in each epoch."
_MAX_MEMORY = "Limit the text tower's memory; above it, classes are computed in parts, each twice."
_TEACHER = "Keep to this model, not to the untouched --model."
_TEACHER_WEIGHTS = "Load these weights of the teacher."
_GRAPH = "Replay steps as one CUDA graph. Default: on a GPU."
_PRECISION = "Compute the training step in fp32, bf16 or fp16. Default: fp32."

Run = Annotated[Path, Argument(metavar="RUN", help="Use this folder, which `train` wrote.")]
Data = Annotated[str, Option(metavar="DIR", help=_DATA)]
Root = Annotated[Path | None, Option(metavar="DIR", help=_ROOT)]
Device = Annotated[str | None, Option(metavar="NAME", help=_DEVICE, rich_help_panel=MEMORY_AND_SPEED)]
Cache = Annotated[Path | None, Option(metavar="DIR", help=_CACHE, rich_help_panel=MEMORY_AND_SPEED)]
NoCache = Annotated[bool, Option("--no-cache", help=_NO_CACHE, rich_help_panel=MEMORY_AND_SPEED)]
Model = Annotated[str, Option(metavar="NAME", help=_MODEL, show_default=False)]
Pretrained = Annotated[str | None, Option(metavar="FILE|TAG", help=_PRETRAINED)]
OtherModel = Annotated[str | None, Option("--model", metavar="NAME", help="Replace the model that the run names.")]
OtherWeights = Annotated[
    str | None, Option("--pretrained", metavar="FILE|TAG", help="Replace the weights that the run names.")
]
Trust = Annotated[bool, Option("--trust", help=_TRUST)]
Precision = Annotated[
    str, Option(metavar="NAME", help=_PRECISION, show_default=False, rich_help_panel=MEMORY_AND_SPEED)
]
Views = Annotated[int | None, Option(min=0, metavar="N", help=_VIEWS, rich_help_panel=TRAINING)]
TeacherModel = Annotated[str | None, Option(metavar="NAME", help=_TEACHER, rich_help_panel=TRAINING)]
TeacherPretrained = Annotated[str | None, Option(metavar="FILE|TAG", help=_TEACHER_WEIGHTS, rich_help_panel=TRAINING)]
MaxMemory = Annotated[float | None, Option(metavar="GB", help=_MAX_MEMORY, rich_help_panel=MEMORY_AND_SPEED)]
Graph = Annotated[
    bool | None, Option("--graph/--no-graph", help=_GRAPH, show_default=False, rich_help_panel=MEMORY_AND_SPEED)
]


def parse_numbers(option: str, text: str) -> list[int]:
    """Numbers with commas between them; ValueError for anything else."""
    try:
        return [int(number) for number in text.split(",")]
    except ValueError:
        raise ValueError(f"{option}: expected numbers with commas between them, such as 1,4,16, got {text!r}") from None
