"""Prompt tuning of open_clip models: loading them, prompted nets, the zero-shot teacher, prompt files.

The nets need torch alone. Prompt files (safetensors) and the models that ship with the library (open_clip, timm) need
more, and import it when they are used.
"""

from prograd_fast.clip.digest import model_digest
from prograd_fast.clip.emoji_lite import load_emoji_lite
from prograd_fast.clip.layout import ClassTokenPosition
from prograd_fast.clip.load import LoadedClip, is_known_model, load_model
from prograd_fast.clip.patches import patch_features
from prograd_fast.clip.prompt_file import SavedPrompt, load_learned, load_prompt, save_learned, save_prompt
from prograd_fast.clip.prompted import PromptedCLIP, PromptLearner
from prograd_fast.clip.regions import BoxCache, PatchCache
from prograd_fast.clip.teacher import ZeroShotTeacher, keep_texts, mean_of_units, template_features
from prograd_fast.clip.text_tower import TextTower
from prograd_fast.clip.tokens import Tokenizer

__all__ = [
    "BoxCache",
    "ClassTokenPosition",
    "LoadedClip",
    "PatchCache",
    "PromptLearner",
    "PromptedCLIP",
    "SavedPrompt",
    "TextTower",
    "Tokenizer",
    "ZeroShotTeacher",
    "is_known_model",
    "keep_texts",
    "load_emoji_lite",
    "load_learned",
    "load_model",
    "load_prompt",
    "mean_of_units",
    "model_digest",
    "patch_features",
    "save_learned",
    "save_prompt",
    "template_features",
]
