"""The operators as functions: stateless, checked, on whatever kernels are in use (`prograd_fast.backends`).

Names, arguments and results are those of `prograd_fast.reference`, which has the formulas.
"""

from prograd_fast.ops.affine_shift import affine_shift
from prograd_fast.ops.differences import soft_wing, squared_error, structure_loss
from prograd_fast.ops.dual_loss import dual_loss
from prograd_fast.ops.edges import edge_softmax_sum
from prograd_fast.ops.gate_shift_fuse import gate_shift_fuse
from prograd_fast.ops.head_dual_loss import head_dual_loss
from prograd_fast.ops.linear_dual_loss import linear_dual_loss, text_to_text_loss
from prograd_fast.ops.normalised_focal import normalised_focal_loss
from prograd_fast.ops.projection import gram, project
from prograd_fast.ops.samples import sampled_cross_entropy, sampled_log_probs
from prograd_fast.ops.soft_argmax import local_soft_argmax
from prograd_fast.ops.updates import project_adamw_, project_sgd_

__all__ = [
    "affine_shift",
    "dual_loss",
    "edge_softmax_sum",
    "gate_shift_fuse",
    "gram",
    "head_dual_loss",
    "linear_dual_loss",
    "local_soft_argmax",
    "normalised_focal_loss",
    "project",
    "project_adamw_",
    "project_sgd_",
    "sampled_cross_entropy",
    "sampled_log_probs",
    "soft_wing",
    "squared_error",
    "structure_loss",
    "text_to_text_loss",
]
