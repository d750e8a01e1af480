"""Whether model, pictures and methods go together, before any work."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from prograd_fast.cli.models import check_text_tower
from prograd_fast.terminal.output import say

if TYPE_CHECKING:
    from prograd_fast.clip import LoadedClip
    from prograd_fast.data import PictureSet
    from prograd_fast.methods import Method


def check_match(clip: "LoadedClip", sets: Sequence["PictureSet"], methods: Sequence["Method"]) -> None:
    """Check that the model can be tuned and tells the user's classes apart; tell where it may be the wrong one.

    Also tells where a method would choose something on validation pictures, and the first set has none.

    Raises:
        ValueError: a method needs another text tower, or the model reads two classes of a user's folder alike.
    """
    from prograd_fast.clip.emoji_lite import NAMES
    from prograd_fast.clip.tokens import refuse_equal_names

    check_text_tower(clip, methods)
    folders = [pictures for pictures in sets if pictures.folder is not None]
    for pictures in folders:
        if not pictures.published:
            refuse_equal_names(clip.tokenizer, pictures.class_names, str(pictures.folder))
    if folders and clip.name in NAMES:
        say(
            f"{clip.name} has learned from drawn emoji and never saw a photo. For photos add --model ViT-B-16 "
            "--pretrained openai; `prograd-fast models` lists more."
        )
    choosing = [method for method in methods if method.chooses]
    if choosing and "validation" not in sets[0].split:
        chosen = ", ".join(f"{method.chooses} of {method.title}" for method in choosing)
        say(
            f"{sets[0].name} has no validation pictures, by which are chosen: {chosen}. The settings stand, or fixed "
            "values."
        )
