"""The operators `torch.ops.prograd_fast.*`: schemas, fakes, derivatives and reference kernels.

Importing this package defines them. Backends register faster kernels for the operators that write into their arguments
(`*_out`, `*_`); the others allocate and call these. `prograd_fast.functional` checks arguments and is what users call.

Common to all: float32 arithmetic straight after the load (float64 for float64 tensors), one rounding at the store;
reductions in an order that depends on the sizes alone; hyper-parameters are run-time values; no value is read back to
the host. Accumulation dtype: float32, or float64 for float64 tensors.

    dual_loss_out             losses (2,) or (2, B) for reduction 0; cotangents (2, B, C) in the student's dtype, with
                              weights and 1/B; correct () int64. reduction: 0 none, 1 mean, 2 sum
    linear_dual_loss_out      the same; cotangents (2, C, D) in the student's class features, of the sum for reduction 0
    gram_out                  entries (U, 3): ‖a‖², ⟨a,b⟩, ‖b‖². scope: 0 each tensor, 1 each row, 2 all together
    project_                  task = alpha·task + beta·general, coefficients (U, 2)
    project_adamw_            one fused step. coefficients None: ProGrad's, from the entries, which are written;
    project_sgd_              otherwise (U, 2) as for project_, and entries are left alone. task is divided by
                              grad_scale. found_inf above 0: only entries are written. steps advance by 1
"""

from prograd_fast.ops import dual_loss, linear_dual_loss, projection, updates

__all__ = ["dual_loss", "linear_dual_loss", "projection", "updates"]
