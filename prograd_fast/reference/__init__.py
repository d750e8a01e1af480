"""The formulas in plain PyTorch: any float dtype, no speed. The kernels are tested against these."""

from prograd_fast.reference.losses import dual_loss, linear_dual_loss
from prograd_fast.reference.projection import (
    combine,
    conflict_coefficients,
    gram,
    prograd_coefficients,
    project,
    split_units,
)
from prograd_fast.reference.prompt import assemble_prompts, encode_prompts
from prograd_fast.reference.updates import project_adamw_, project_sgd_

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
    "split_units",
]
