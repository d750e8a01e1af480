"""Losses as modules: what a training loop calls."""

from prograd_fast.losses.dual_loss import DualLoss
from prograd_fast.losses.related import SRD, SampledCrossEntropy, SoftWing, TextToText
from prograd_fast.losses.xerm import XERM, causal_norm_logits, ldam_margins, prior_offset

__all__ = [
    "SRD",
    "XERM",
    "DualLoss",
    "SampledCrossEntropy",
    "SoftWing",
    "TextToText",
    "causal_norm_logits",
    "ldam_margins",
    "prior_offset",
]
