"""Pretrained weights: read from files of any known form without running them, and put into open_clip's models."""

from prograd_fast.clip.pretrained.activation import choose, has_both, split_activation
from prograd_fast.clip.pretrained.fill import fill
from prograd_fast.clip.pretrained.names import check_name, near, shorten, tags_of
from prograd_fast.clip.pretrained.preprocessing import transform_options
from prograd_fast.clip.pretrained.weights import Weights, read_weights

__all__ = [
    "Weights",
    "check_name",
    "choose",
    "fill",
    "has_both",
    "near",
    "read_weights",
    "shorten",
    "split_activation",
    "tags_of",
    "transform_options",
]
