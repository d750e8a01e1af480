"""The options that several commands have."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

_DATA = "Use this embedded set, or this folder, which has one folder of pictures per class."
_DEVICE = "Compute on this torch device, such as cpu or cuda:1. Default: the GPU if there is one."
_CACHE = "Keep image features in this folder. Default: prograd-fast in your folder for caches."
_MODEL = "Use this model: emoji-lite, emoji-lite-named, or a name that open_clip knows."
_PRETRAINED = "Load these weights into an open_clip model: a file, or a tag to download."
_TRUST = "Load the model that the run names, even if it is a file, a folder or somebody's repository."
_VIEWS = (
    "Train on random crops and flips. N views of each picture are stored and take turns; 0 makes a new view in each "
    "epoch. Default: train on the pictures as they are."
)
_MAX_MEMORY = (
    "Limit the memory of the text tower in training. Above the limit it computes the classes in parts, and each part "
    "twice. Default: no limit."
)

Run = Annotated[Path, Argument(metavar="RUN", help="Use this folder, which `train` wrote.")]
Data = Annotated[str, Option(metavar="emoji|clipart|DIR", help=_DATA)]
Device = Annotated[str | None, Option(help=_DEVICE)]
Cache = Annotated[Path | None, Option(metavar="DIR", help=_CACHE)]
NoCache = Annotated[bool, Option("--no-cache", help="Encode every picture again, and keep no features.")]
Model = Annotated[str, Option(metavar="NAME", help=_MODEL)]
Pretrained = Annotated[str | None, Option(metavar="FILE|TAG", help=_PRETRAINED)]
OtherModel = Annotated[str | None, Option("--model", metavar="NAME", help="Replace the model that the run names.")]
OtherWeights = Annotated[
    str | None, Option("--pretrained", metavar="FILE|TAG", help="Replace the weights that the run names.")
]
Trust = Annotated[bool, Option("--trust", help=_TRUST)]
Precision = Annotated[str, Option(metavar="fp32|bf16|fp16", help="Compute the training step in this precision.")]
Views = Annotated[int | None, Option(min=0, metavar="N", help=_VIEWS)]
MaxMemory = Annotated[float | None, Option(metavar="GB", help=_MAX_MEMORY)]
