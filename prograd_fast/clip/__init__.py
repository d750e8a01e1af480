"""Prompt tuning of open_clip models: prompted nets, the zero-shot teacher, prompt files.

The nets need torch alone; what needs other packages (prompt files: safetensors; the model that ships with the library:
open_clip and timm) is imported when first asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from prograd_fast.clip.layout import ClassTokenPosition
from prograd_fast.clip.prompted import PromptedCLIP, PromptLearner
from prograd_fast.clip.teacher import ZeroShotTeacher
from prograd_fast.clip.text_tower import TextTower
from prograd_fast.clip.tokens import Tokenizer

if TYPE_CHECKING:
    from prograd_fast.clip.emoji_lite import load_emoji_lite
    from prograd_fast.clip.prompt_file import SavedPrompt, load_prompt, save_prompt

__all__ = [
    "ClassTokenPosition",
    "PromptLearner",
    "PromptedCLIP",
    "SavedPrompt",
    "TextTower",
    "Tokenizer",
    "ZeroShotTeacher",
    "load_emoji_lite",
    "load_prompt",
    "save_prompt",
]

# name -> (module, the extra that brings what it needs)
_LAZY = {
    "SavedPrompt": ("prompt_file", "clip"),
    "load_emoji_lite": ("emoji_lite", "demo"),
    "load_prompt": ("prompt_file", "clip"),
    "save_prompt": ("prompt_file", "clip"),
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, extra = _LAZY[name]
    try:
        return getattr(import_module(f"{__name__}.{module}"), name)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{name} needs the package {error.name!r}: pip install 'prograd-fast[{extra}]'", name=error.name
        ) from error


def __dir__() -> list[str]:
    return __all__
