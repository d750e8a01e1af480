"""The formulas in plain PyTorch: any float dtype, no speed. The kernels are tested against these."""

from prograd_fast.reference.losses import dual_loss, linear_dual_loss
from prograd_fast.reference.projection import conflict_coefficients, gram, project, project_one
from prograd_fast.reference.updates import project_adamw_, project_sgd_

__all__ = [
    "conflict_coefficients",
    "dual_loss",
    "gram",
    "linear_dual_loss",
    "project",
    "project_adamw_",
    "project_one",
    "project_sgd_",
]
