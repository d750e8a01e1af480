"""The operators `torch.ops.prograd_fast.*`: schemas, fakes, derivatives and reference kernels.

Importing this package defines them. Backends register faster kernels for the operators that write into their arguments
(`*_out`, `*_`); the others allocate and call these. `prograd_fast.functional` is what users call.

A wrong call is refused before anything is read or written, with a ValueError or TypeError that names the argument, what
was expected and what came (`checks.py`; csrc/checks.h for kernels in C++). All tensors of a call are on one device, but
for `lr_tensor`, which may be on the CPU. What a kernel writes has a place of its own for each element; strides are free
unless said otherwise.

Common to all: float32 arithmetic straight after the load (float64 for float64 tensors), one rounding at the store;
reductions in an order that depends on the sizes alone; hyper-parameters are run-time values; no value is read back to
the host. Accumulation dtype: float32, or float64 for float64 tensors.

    dual_loss_out             losses (2,) or (2, B) for reduction 0; cotangents (2, B, C) in the student's dtype, with
                              weights and 1/B; correct () int64. reduction: 0 none, 1 mean, 2 sum
    linear_dual_loss_out      the same; cotangents (2, C, D) in the student's class features, of the sum for reduction 0
    linear_cross_entropy_out  loss () of the logits scale · X Wᵀ, mean over the rows; cotangents (C, D) in W
    sampled_cross_entropy_out logits (S, B, C), losses () or (B,), cotangents as the logits; reductions as above
    sampled_log_probs_out     logits (S, B, C), log_probs (B, C) in the accumulation dtype
    difference_loss_out       loss () = factor · Σ f(prediction - target), cotangents its derivative in the prediction
    gram_out                  entries (U, 3): ‖a‖², ⟨a,b⟩, ‖b‖². scope: 0 each tensor, 1 each row, 2 all together
    project_                  task = alpha·task + beta·general, coefficients (U, 2)
    project_adamw_            one fused step. coefficients None: ProGrad's, from the entries, which are written;
    project_sgd_              otherwise (U, 2) as for project_, and entries are left alone. task is divided by
                              grad_scale. found_inf above 0: only entries are written. steps advance by 1

    shared_prefix_attention_out            } as in `prograd_fast.reference.transformer`, all in one dtype, offsets int64
    shared_prefix_attention_backward_out   } on the same device. Last dimensions are contiguous; rows and groups may
                                           have any stride (queries, keys and values are views of one matrix product's
                                           result, and so are their gradients). The backward writes all of its results
    add_layer_norm_out        x, branch, total, normed (R, d) contiguous; weight, bias, statistics in the accumulation
                              dtype
    layer_norm_backward_      d_total (K, R, d) += gradient through the norm; contiguous
    gelu_out, gelu_backward_  contiguous, any shape; gradient (K, *x.shape) *= gelu'(x). approximate: 0 none, 1 tanh,
                              2 sigmoid
"""

from prograd_fast.ops import (
    differences,
    dual_loss,
    linear_cross_entropy,
    linear_dual_loss,
    projection,
    samples,
    transformer,
    updates,
)

__all__ = [
    "differences",
    "dual_loss",
    "linear_cross_entropy",
    "linear_dual_loss",
    "projection",
    "samples",
    "transformer",
    "updates",
]
