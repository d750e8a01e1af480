"""ProGradAdamW: torch.optim.AdamW on the projected gradient."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim.optimizer import ParamsT

from prograd_fast.ops.common import SCOPES, Scope
from prograd_fast.ops.registry import operator_for, shortcut_for
from prograd_fast.optim.bucket import Bucket
from prograd_fast.optim.inner_step import learning_rate, unhooked
from prograd_fast.optim.precision import Precision
from prograd_fast.optim.rules import Rule
from prograd_fast.optim.shards import parts_of
from prograd_fast.optim.two_gradients import TwoGradients

_STATES = ({"step", "exp_avg", "exp_avg_sq"}, {"step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq"})  # by amsgrad


class ProGradAdamW(TwoGradients, torch.optim.AdamW):
    """AdamW that does not work against what the teacher knows.

    With a = ∇task and b = ∇general:

        g = a - λ · min(0, ⟨a,b⟩) / ‖b‖² · b
        θ, m, v = AdamW(θ, g, m, v)

    Everything else is `torch.optim.AdamW`: without `backward` (plain `loss.backward(); opt.step()`) it gives the same
    parameters bit for bit, and its `state_dict` has the same keys, so that a checkpoint goes either way. As in the
    authors' code, weight decay and momentum act after the projection.

    Source: Zhu et al., Prompt-aligned Gradient for Prompt Tuning, arXiv:2205.14865; Loshchilov & Hutter,
    arXiv:1711.05101.

    Args:
        params: parameters, or parameter groups; a group may bring its own `lambda_`.
        lr: learning rate, a number or a one-element tensor (default: 1e-3).
        betas: decay of m and v (default: (0.9, 0.999)).
        eps: added to the root (default: 1e-8).
        weight_decay: decoupled (default: 1e-2).
        amsgrad: keep the maximum of v (default: False).
        lambda_: λ ≥ 0: 0 never projects, 1 removes the whole conflict (default: 1.0).
        scope: what is tested and projected as a whole: each "tensor" (default, as the authors do), each "row" (leading
            index), or all tensors together ("global").
        rule: another rule than ProGrad's, from `prograd_fast.rules` (default: None, `rules.ProGrad(lambda_)`).
        maximize: ascend both losses (default: False).
        foreach: as in torch.optim.AdamW (default: None).
        capturable: as in torch.optim.AdamW (default: False).
        differentiable: as in torch.optim.AdamW; the projection is differentiable too (default: False).
        fused: as in torch.optim.AdamW (default: None).
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
            copies of parameters and gradients. Default: None, all to nearest.

    Raises:
        TypeError, ValueError: as torch.optim.AdamW, and for a `lambda_` or `noise_floor` below 0, an unknown `scope`,
            or what `state_dtype` and `stochastic_rounding` do not take or do not go with: `foreach`, `fused`,
            `differentiable`.

    Example:
        >>> import torch, prograd_fast as pf
        >>> context = torch.nn.Parameter(torch.ones(2))
        >>> opt = pf.ProGradAdamW([context], lr=0.1)
        >>> opt.backward((context * torch.tensor([1.0, -1.0])).sum(), (context * torch.tensor([0.0, 1.0])).sum())
        >>> context.grad  # what worked against the general loss is gone
        tensor([1., 0.])
        >>> opt.step()
        >>> opt.conflict.rate
        tensor([1.])
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        lambda_: float = 1.0,
        scope: Scope = "tensor",
        rule: Rule | None = None,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
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
            betas,
            eps,
            weight_decay,
            amsgrad,
            maximize=maximize,
            foreach=foreach,
            capturable=capturable,
            differentiable=differentiable,
            fused=fused,
        )

    _has_fused_update = True

    def _fused_update(
        self, bucket: Bucket, entries: Tensor, coefficients: Tensor | None, found_inf: Tensor | None
    ) -> None:
        group = bucket.group
        states = [self._state_of(p, group) for p in bucket.params]
        parts = bucket.parts
        beta1, beta2 = group["betas"]
        params, steps = self._precision.unrounded(parts), [state["step"] for state in states]
        operator_for("project_adamw_", params[0])(
            params,
            bucket.task,
            bucket.general,
            parts_of([state["exp_avg"] for state in states]),
            parts_of([state["exp_avg_sq"] for state in states]),
            parts_of([state["max_exp_avg_sq"] for state in states]) if group["amsgrad"] else [],
            steps,
            entries,
            coefficients,
            *learning_rate(group["lr"], parts[0]),
            beta1,
            beta2,
            group["eps"],
            group["weight_decay"],
            bucket.lambda_,
            bucket.noise_floor,
            SCOPES.index(self._projector.scope),
            group["amsgrad"],
            group["maximize"],
            found_inf,
        )
        self._precision.round_into(bucket.params, params, steps, self._parameters)

    def _states_read(self, p: Tensor, group: dict[str, Any]) -> dict[str, Any]:
        state = self.state.get(p)
        names = _STATES[group["amsgrad"]]
        if not state or state.keys() == names:
            return state or {}
        return {name: state.get(name) for name in names}

    def _state_of(self, p: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        """The state as torch.optim.AdamW keeps it, with the step count on the parameter's device, so nothing waits."""
        state = self.state[p]
        if not state:
            device = p.device if group["fused"] or group["capturable"] else "cpu"
            wide = torch.get_default_dtype() == torch.float64 and not group["fused"]
            state["step"] = torch.zeros((), dtype=torch.float64 if wide else torch.float32, device=device)
            state["exp_avg"] = self._precision.zeros_like(p)
            state["exp_avg_sq"] = self._precision.zeros_like(p)
            if group["amsgrad"]:
                state["max_exp_avg_sq"] = self._precision.zeros_like(p)
        if state["step"].device != p.device:
            state["step"] = state["step"].to(p.device)
        return state

    def _update_at_once(self) -> bool:
        if len(self.param_groups) != 1 or self._precision.is_own:
            return False
        (group,) = self.param_groups
        params = [p for p in group["params"] if p.grad is not None]
        numbers = (group["lr"], *group["betas"])
        shortcut = shortcut_for("adamw", params[0]) if params and group["fused"] else None
        if shortcut is None or not all(isinstance(number, float) for number in numbers):
            return False
        # an Adam's state may say that weight decay is not decoupled; a GradScaler hands found_inf on this way
        if not group.get("decoupled_weight_decay", True) or getattr(self, "found_inf", None) is not None:
            return False
        states = [self.state.get(p, {}) for p in params]
        if not all(_STATES[group["amsgrad"]] <= state.keys() for state in states):
            return False
        done: bool = shortcut(
            params,
            [p.grad for p in params],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [state["max_exp_avg_sq"] for state in states] if group["amsgrad"] else [],
            [state["step"] for state in states],
            *numbers,
            group["weight_decay"],
            group["eps"],
            group["amsgrad"],
            group["maximize"],
        )
        return done

    def _update(self) -> None:
        if self._precision.is_own or self._is_traced():
            self._update_by_operator()
        else:
            unhooked(torch.optim.AdamW.step)(self)
