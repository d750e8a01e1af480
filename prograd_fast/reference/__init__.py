"""The formulas in plain PyTorch: any float dtype, no speed. The kernels are tested against these."""

from prograd_fast.reference.differences import soft_wing, squared_error
from prograd_fast.reference.losses import dual_loss, linear_dual_loss, text_to_text_loss
from prograd_fast.reference.projection import (
    combine,
    conflict_coefficients,
    gram,
    prograd_coefficients,
    project,
    split_units,
)
from prograd_fast.reference.prompt import assemble_prompts, encode_prompts
from prograd_fast.reference.samples import sampled_cross_entropy, sampled_log_probs
from prograd_fast.reference.updates import project_adamw_, project_sgd_
from prograd_fast.reference.xerm import xerm_weights

__all__ = [
    "assemble_prompts",
    "combine",
    "conflict_coefficients",
    "dual_loss",
    "encode_prompts",
    "gram",
    "linear_dual_loss",
    "prograd_coefficients",
    "project",
    "project_adamw_",
    "project_sgd_",
    "sampled_cross_entropy",
    "sampled_log_probs",
    "soft_wing",
    "split_units",
    "squared_error",
    "text_to_text_loss",
    "xerm_weights",
]
