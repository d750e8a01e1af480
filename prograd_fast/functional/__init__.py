"""The operators as functions: stateless, checked, on whatever kernels are in use (`prograd_fast.backends`).

Names, arguments and results are those of `prograd_fast.reference`, which has the formulas.
"""

from prograd_fast.functional.differences import soft_wing, squared_error
from prograd_fast.functional.gradients import gram, project, project_adamw_, project_sgd_
from prograd_fast.functional.losses import dual_loss, linear_dual_loss, text_to_text_loss
from prograd_fast.functional.samples import sampled_cross_entropy, sampled_log_probs

__all__ = [
    "dual_loss",
    "gram",
    "linear_dual_loss",
    "project",
    "project_adamw_",
    "project_sgd_",
    "sampled_cross_entropy",
    "sampled_log_probs",
    "soft_wing",
    "squared_error",
    "text_to_text_loss",
]
