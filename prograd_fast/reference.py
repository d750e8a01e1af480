"""The formulas in plain PyTorch: any float dtype, no speed. The kernels are tested against these."""

from prograd_fast.ops.affine_shift import affine_shift_formula as affine_shift
from prograd_fast.ops.differences import soft_wing_formula as soft_wing
from prograd_fast.ops.differences import squared_error_formula as squared_error
from prograd_fast.ops.differences import structure_loss_formula as structure_loss
from prograd_fast.ops.dual_loss import dual_loss_formula as dual_loss
from prograd_fast.ops.edges import edge_softmax_sum_formula as edge_softmax_sum
from prograd_fast.ops.gate_shift_fuse import gate_shift_fuse_formula as gate_shift_fuse
from prograd_fast.ops.head_dual_loss import head_dual_loss_formula as head_dual_loss
from prograd_fast.ops.linear_dual_loss import linear_dual_loss_formula as linear_dual_loss
from prograd_fast.ops.linear_dual_loss import text_to_text_loss_formula as text_to_text_loss
from prograd_fast.ops.normalised_focal import normalised_focal_loss_formula as normalised_focal_loss
from prograd_fast.ops.projection import combine, conflict_coefficients, prograd_coefficients, split_units
from prograd_fast.ops.projection import gram_formula as gram
from prograd_fast.ops.projection import project_formula as project
from prograd_fast.ops.prompt import assemble_prompts, encode_prompts
from prograd_fast.ops.rounding import stochastic_rounding
from prograd_fast.ops.samples import sampled_cross_entropy_formula as sampled_cross_entropy
from prograd_fast.ops.samples import sampled_log_probs_formula as sampled_log_probs
from prograd_fast.ops.soft_argmax import local_soft_argmax_formula as local_soft_argmax
from prograd_fast.ops.updates import project_adamw_formula as project_adamw_
from prograd_fast.ops.updates import project_sgd_formula as project_sgd_
from prograd_fast.ops.xerm import xerm_weights

__all__ = [
    "affine_shift",
    "assemble_prompts",
    "combine",
    "conflict_coefficients",
    "dual_loss",
    "edge_softmax_sum",
    "encode_prompts",
    "gate_shift_fuse",
    "gram",
    "head_dual_loss",
    "linear_dual_loss",
    "local_soft_argmax",
    "normalised_focal_loss",
    "prograd_coefficients",
    "project",
    "project_adamw_",
    "project_sgd_",
    "sampled_cross_entropy",
    "sampled_log_probs",
    "soft_wing",
    "split_units",
    "squared_error",
    "stochastic_rounding",
    "structure_loss",
    "text_to_text_loss",
    "xerm_weights",
]
