"""How pictures become a model's input where its weights come from a file, which does not say."""

import logging
from typing import Any

from prograd_fast.clip.pretrained.weights import Weights

_log = logging.getLogger(__name__)


def transform_options(architecture: str, weights: Weights) -> dict[str, Any]:
    """Options of `open_clip.create_model_and_transforms`: what weights of an architecture want of a picture.

    Hugging Face's file beside the weights tells the pixels' mean and standard deviation. Else all weights of this
    architecture that open_clip knows are asked. Where they disagree, it is OpenAI's way, with a line in the log.
    """
    from open_clip import list_pretrained_tags_by_model
    from open_clip.pretrained import get_pretrained_cfg

    names = ("mean", "std", "interpolation", "resize_mode")
    configurations = [get_pretrained_cfg(architecture, tag) for tag in list_pretrained_tags_by_model(architecture)]
    ways = {tuple(tag.get(name) for name in names) for tag in configurations}
    options: dict[str, Any] = {}
    if len(ways) == 1:
        options = {f"image_{name}": value for name, value in zip(names, ways.pop(), strict=True)}
    elif len(ways) > 1 and weights.source != "OpenAI" and weights.pixels is None:
        _log.warning(
            "%s: weights of this architecture differ in how they take pictures, and a file does not say; pictures are "
            "prepared as for OpenAI's",
            architecture,
        )
    if weights.pixels is not None:
        options["image_mean"], options["image_std"] = weights.pixels
    return options
