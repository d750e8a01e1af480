"""ProGradSGD: torch.optim.SGD on the projected gradient."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim.optimizer import ParamsT

from prograd_fast.ops.common import SCOPES, Scope
from prograd_fast.ops.registry import operator_for
from prograd_fast.optim.bucket import Bucket
from prograd_fast.optim.inner_step import learning_rate, unhooked
from prograd_fast.optim.precision import Precision
from prograd_fast.optim.rules import Rule
from prograd_fast.optim.shards import parts_of
from prograd_fast.optim.two_gradients import TwoGradients


class ProGradSGD(TwoGradients, torch.optim.SGD):
    """SGD that does not work against what the teacher knows: the authors' own choice of optimizer.

    With a = ∇task and b = ∇general:

        g = a - λ · min(0, ⟨a,b⟩) / ‖b‖² · b
        θ, m = SGD(θ, g, m)

    Everything else is `torch.optim.SGD`: without `backward` it gives the same parameters bit for bit, and its
    `state_dict` has the same keys. As in the authors' code, weight decay and momentum act after the projection.

    Source: Zhu et al., Prompt-aligned Gradient for Prompt Tuning, arXiv:2205.14865. The authors train with lr 0.002,
    momentum 0.9, weight_decay 5e-4.

    Args:
        params: parameters, or parameter groups; a group may bring its own `lambda_`.
        lr: learning rate, a number or a one-element tensor (default: 1e-3).
        momentum: μ (default: 0).
        dampening: of the gradient that enters the momentum (default: 0).
        weight_decay: added to the projected gradient (default: 0).
        nesterov: look ahead (default: False).
        lambda_: λ ≥ 0: 0 never projects, 1 removes the whole conflict (default: 1.0).
        scope: what is tested and projected as a whole: each "tensor" (default, as the authors do), each "row" (leading
            index), or all tensors together ("global").
        rule: another rule than ProGrad's, from `prograd_fast.rules` (default: None, `rules.ProGrad(lambda_)`).
        maximize: ascend both losses (default: False).
        foreach: as in torch.optim.SGD (default: None).
        differentiable: as in torch.optim.SGD; the projection is differentiable too (default: False).
        fused: as in torch.optim.SGD (default: None).
        noise_floor: a general gradient with ‖b‖ ≤ noise_floor·‖a‖ is rounding and left out (default: None,
            `prograd_fast.optim.NOISE_FLOORS` by the gradient's dtype; 0 for the authors' arithmetic). Give that of the
            losses' precision where it is another, as under autocast.
        process_group: the ranks over which `backward` averages both gradients (default: None, one rank). Parameters
            under `fully_shard` and other DTensors need none where each rank has a part of all of them.
        state_dtype: dtype of the moments, such as torch.float32 beside bfloat16 or float16 parameters (default: None,
            the parameter's, as torch.optim). The arithmetic is in float32 or wider whatever it is. Loaded states are
            converted; torch.optim, when it loads these, rounds them to the parameter's.
        stochastic_rounding: a seed: bfloat16 parameters are rounded up or down at random, right in the mean, by
            `prograd_fast.reference.stochastic_rounding`; those of other dtypes to nearest. A step then makes float32
            copies of parameters and gradients, and the state counts the steps.
            Default: None, all to nearest.

    Raises:
        TypeError, ValueError: as torch.optim.SGD, and for a `lambda_` or a `noise_floor` below 0, an unknown `scope`,
            or what `state_dtype` and `stochastic_rounding` do not take or do not go with: `foreach`, `fused`,
            `differentiable`.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float | Tensor = 0.0,
        nesterov: bool = False,
        *,
        lambda_: float = 1.0,
        scope: Scope = "tensor",
        rule: Rule | None = None,
        maximize: bool = False,
        foreach: bool | None = None,
        differentiable: bool = False,
        fused: bool | None = None,
        noise_floor: float | None = None,
        process_group: "dist.ProcessGroup | None" = None,
        state_dtype: torch.dtype | None = None,
        stochastic_rounding: int | None = None,
    ) -> None:
        precision = Precision(state_dtype, stochastic_rounding)
        precision.check(foreach=foreach, differentiable=differentiable, fused=fused)
        self._init_two_gradients(lambda_, scope, rule, noise_floor, process_group, precision)
        super().__init__(
            params,
            lr,
            momentum,
            dampening,
            weight_decay,
            nesterov,
            maximize=maximize,
            foreach=foreach,
            differentiable=differentiable,
            fused=fused,
        )

    _has_fused_update = True

    def _bucket_key(self, p: Tensor) -> bool:
        return self.state.get(p, {}).get("momentum_buffer") is None  # the first step starts the momentum

    def _fused_update(
        self, bucket: Bucket, entries: Tensor, coefficients: Tensor | None, found_inf: Tensor | None
    ) -> None:
        group = bucket.group
        buffers, first = [], False
        if group["momentum"] != 0:
            buffers = [self.state.get(p, {}).get("momentum_buffer") for p in bucket.params]
            first = buffers[0] is None
            if first:
                buffers = [self._precision.zeros_like(p) for p in bucket.params]
        parts = bucket.parts
        params = self._precision.unrounded(parts)
        operator_for("project_sgd_", params[0])(
            params,
            bucket.task,
            bucket.general,
            parts_of(buffers),
            entries,
            coefficients,
            *learning_rate(group["lr"], parts[0]),
            group["momentum"],
            group["dampening"],
            group["weight_decay"],
            bucket.lambda_,
            bucket.noise_floor,
            SCOPES.index(self._projector.scope),
            group["nesterov"],
            group["maximize"],
            first,
            found_inf,
        )
        if self._precision.seed is not None:
            steps = [self._counted(p, found_inf) for p in bucket.params]
            self._precision.round_into(bucket.params, params, steps, self._parameters)
        # Kept only now: a step that failed was none. Nor is one that was skipped; but a buffer of zeros is as good as
        # none without dampening, and to look for the skip waits for the device.
        if first and not (group["dampening"] and found_inf is not None and found_inf.item()):
            for p, buffer in zip(bucket.params, buffers, strict=True):
                self.state[p]["momentum_buffer"] = buffer

    def _counted(self, p: Tensor, found_inf: Tensor | None) -> Tensor:
        """The number of steps of a parameter, this one included, which rounding needs and torch.optim does not keep."""
        step = self.state[p].get("step")
        # a default dtype of 16 bits would count to 256 and no further
        step = torch.zeros((), dtype=torch.float32, device=p.device) if step is None else step.to(p.device)
        self.state[p]["step"] = step
        return step.add_(1 if found_inf is None else 1 - found_inf)

    def _states_read(self, p: Tensor, group: dict[str, Any]) -> dict[str, Any]:
        buffer = self.state.get(p, {}).get("momentum_buffer")
        return {} if buffer is None or group["momentum"] == 0 else {"momentum_buffer": buffer}

    def _update(self) -> None:
        if self._precision.is_own or self._is_traced():
            self._update_by_operator()
        else:
            unhooked(torch.optim.SGD.step)(self)
