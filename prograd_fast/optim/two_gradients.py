"""The base of ProGradAdamW, ProGradSGD and ProGrad: takes two gradients, updates with the projected one."""

import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim import Optimizer

from prograd_fast.ops.common import SCOPES, Scope
from prograd_fast.ops.projection import check_pairs
from prograd_fast.optim.bucket import Bucket
from prograd_fast.optim.conflict import Conflict
from prograd_fast.optim.one_backward import gradients_of_both
from prograd_fast.optim.projector import Projector
from prograd_fast.optim.rules import Rule
from prograd_fast.optim.states import all_fit, check_learning_rate, check_parameter


class TwoGradients(Optimizer):
    """An optimizer that takes the gradients of a task loss and of a general loss, and steps on the projected one.

    The order is: `backward`, any number of times; `all_reduce`, where there are several ranks; unscaling; `project`;
    clipping; update. `step` does by itself what of this was not asked for. Without `backward` it is the torch.optim
    optimizer that it stands on and nothing else.
    """

    # A GradScaler then leaves unscaling and skipping to `step`, which looks at the general gradient too.
    _step_supports_amp_scaling = True

    _general: dict[Tensor, Tensor]  # what `backward` has added up, by parameter
    _remembered: dict[Tensor, tuple[Tensor, int]]  # each .grad that there was then, and its version
    _stepped: bool
    _reduced: bool
    _projected: bool
    _non_finite: Tensor | None  # 0-d bool on the device, once the gradients were compared

    def _init_two_gradients(self, lambda_: float, scope: Scope, rule: Rule | None) -> None:
        check_lambda(lambda_)
        if rule is not None and not isinstance(rule, Rule):
            raise TypeError(f"rule: expected an object of prograd_fast.rules, got {type(rule).__name__}.")
        if rule is not None and lambda_ != 1:
            raise ValueError(f"lambda_: expected it in the rule, got {lambda_} beside {rule!r}. Leave lambda_ out.")
        if scope not in SCOPES:
            raise ValueError(f"scope: expected one of {', '.join(SCOPES)}, got {scope!r}.")
        self.lambda_ = lambda_
        self._projector = Projector(scope, rule)
        self._forget_gradients()

    @property
    def _parameters(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"]]

    # ---- two gradients in

    def backward(
        self,
        task: Tensor,
        general: Tensor,
        *,
        retain_graph: bool = False,
        create_graph: bool = False,
        scaler: "torch.amp.GradScaler | None" = None,
    ) -> None:
        """Differentiate both losses with respect to the parameters of this optimizer, and add the gradients up.

        The task gradient is added to `.grad`, as `task.backward()` would do; the general gradient is kept by the
        optimizer. Both accumulate until `zero_grad`. Parameters of other optimizers get no gradient.

        Args:
            task: the loss to minimise, one element.
            general: the loss whose gradient must not be worked against, one element.
            retain_graph: keep the graph for another backward (default: False).
            create_graph: make the gradients differentiable themselves (default: False).
            scaler: a `torch.amp.GradScaler`. Both losses are multiplied by its scale, and a non-finite general
                gradient then makes it skip the step *and lower its scale*, as a non-finite task gradient does. Losses
                that were scaled by hand work too, but then a non-finite general gradient only skips the step.

        Raises:
            TypeError: a loss is not a tensor, or a gradient is sparse or complex.
            ValueError: a loss has several elements, no graph, or reaches none of the parameters.
            RuntimeError: `.grad` already holds a projected gradient.
        """
        _check_loss("task", task)
        _check_loss("general", general)
        params = [p for p in self._parameters if p.requires_grad]
        if not params:
            raise ValueError("backward: expected parameters that require grad, got an optimizer of frozen ones only.")
        self._forget_zeroed_gradients()
        if self._projected:
            raise RuntimeError(
                "backward: project() has put the projected gradient into .grad, and a new one cannot be added to it. "
                "Call zero_grad() of this optimizer first."
            )
        if scaler is not None:
            task, general = scaler.scale(task), scaler.scale(general)
        a, b = gradients_of_both(task, general, params, retain_graph=retain_graph, create_graph=create_graph)
        assert b is not None
        _check_gradients("task", a)
        _check_gradients("general", b)
        for p, task_gradient, general_gradient in zip(params, a, b, strict=True):
            if general_gradient is not None:
                self._general[p] = _accumulate(self._general.get(p), general_gradient)
                if scaler is not None and scaler.is_enabled() and task_gradient is not None:
                    # the scaler looks at .grad alone: show it there what went wrong with the general gradient
                    task_gradient = task_gradient.where(general_gradient.isfinite(), torch.nan)
            if task_gradient is not None:
                p.grad = _accumulate(p.grad, task_gradient)
        self._remember_gradients(self._parameters)
        self._reduced = False

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget both gradients.

        Args:
            set_to_none: drop both gradients (default) instead of filling their memory with zeros.
        """
        super().zero_grad(set_to_none)
        kept = {} if set_to_none else self._general
        self._forget_gradients()
        for p, gradient in kept.items():
            self._general[p] = gradient.detach().zero_()

    def _remember_gradients(self, params: Iterable[Tensor]) -> None:
        """Note each `.grad` and its version, by which a later change shows."""
        self._remembered = {p: (a, a._version) for p in params if (a := p.grad) is not None}
        self._stepped = False

    def _remember_gradients_of_step(self) -> None:
        if not torch.compiler.is_compiling():
            self._remember_gradients(self._remembered)

    def _forget_zeroed_gradients(self) -> None:
        """Forget what belongs to gradients that are gone: `model.zero_grad()` and `.grad = None` do not tell.

        Before the step a gradient may be changed in place (unscaled, clipped); after it, a change means that it was
        zeroed, or that a plain `loss.backward()` has begun something new.
        """
        before = list(self._remembered.items())
        for p, (gradient, version) in before:
            if p.grad is gradient and not (self._stepped and gradient._version != version):
                continue
            if p.grad is not None and not self._stepped and p in self._general:
                raise RuntimeError(
                    "step: expected in .grad the tensor that backward() put there, got another one, so it is not known "
                    "whether the general gradient still belongs to it. Change .grad in place (p.grad.copy_(...)), or "
                    "call zero_grad() of this optimizer first."
                )
            del self._remembered[p]
            self._general.pop(p, None)
        if before and not self._remembered:
            self._forget_gradients()

    def _forget_gradients(self) -> None:
        self._general = {}
        self._remembered = {}
        self._stepped = False
        self._reduced = False
        self._projected = False
        self._non_finite = None

    def all_reduce(self, group: "torch.distributed.ProcessGroup | None" = None) -> None:
        """Average both gradients over the ranks of a process group, in one collective for each device and dtype.

        Call it on every rank, after the last `backward` of a step and before `project` or `step`. A trainable parameter
        that has no gradient on a rank counts as zero there, and has a gradient everywhere afterwards.
        (DistributedDataParallel cannot do this: its hooks see one gradient, and only that of `loss.backward()`.)

        Args:
            group: the process group (default: None, all ranks).

        Raises:
            RuntimeError: torch.distributed is not initialised, or the gradients are projected already.
        """
        if not (dist.is_available() and dist.is_initialized()):
            raise RuntimeError("all_reduce: torch.distributed is not initialised. Call init_process_group() first.")
        if self._projected:
            raise RuntimeError("all_reduce: the gradients are projected already. Call it before project() and step().")
        self._forget_zeroed_gradients()
        params = [p for p in self._parameters if p.requires_grad]
        for kind in dict.fromkeys((p.device, p.dtype) for p in params):
            same = [p for p in params if (p.device, p.dtype) == kind]
            for p in same:
                p.grad = torch.zeros_like(p) if p.grad is None else p.grad
                self._general.setdefault(p, torch.zeros_like(p))
            gradients = [p.grad.detach() for p in same if p.grad is not None]
            gradients += [self._general[p].detach() for p in same]
            flat = torch.cat([gradient.flatten() for gradient in gradients])
            dist.all_reduce(flat, group=group)
            flat /= dist.get_world_size(group)
            for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
                gradient.copy_(mean.view(gradient.shape))
        self._remember_gradients(self._parameters)
        self._reduced = True

    # ---- one gradient out

    def project(self) -> None:
        """Replace `.grad` by the projected gradient, g = a - λ·min(0, ⟨a,b⟩)/‖b‖²·b.

        `step` does not need it: it projects by itself, and leaves `.grad` as it is. Call it to look at the projected
        gradient or to clip it before the update: `opt.backward(task, general); opt.project(); clip_grad_norm_(params,
        1.0); opt.step()`. With a GradScaler, `scaler.unscale_(opt)` comes first. Calling it again does nothing.
        """
        self._forget_zeroed_gradients()
        if self._projected:
            return
        for p, g in self._projected_gradients(self._buckets()):
            if p.grad is None or g.requires_grad:
                p.grad = g
            else:
                p.grad.copy_(g)  # in place: it may be a view of a bigger buffer
        self._remember_gradients(self._parameters)
        self._projected = True

    def _buckets(self) -> list[Bucket]:
        """The parameters that have a task gradient; empty if no rule or general gradient could change it."""
        if not self._general and self._projector.rule is None:
            return []
        if self._general:
            self._warn_unless_reduced()
        buckets: dict[Any, Bucket] = {}
        for i, group in enumerate(self.param_groups):
            for p in group["params"]:
                a = p.grad
                if a is None:
                    continue
                kind = (i, a.device, a.dtype, self._bucket_key(p))
                bucket = buckets.get(kind)
                if bucket is None:
                    bucket = buckets[kind] = Bucket(group.get("lambda_", self.lambda_), group)
                b = self._general.get(p)
                bucket.params.append(p)
                bucket.task.append(a)
                bucket.general.append(torch.zeros_like(a) if b is None else b)
        return list(buckets.values())

    def _bucket_key(self, p: Tensor) -> Any:
        """A value that all parameters of one call must share, besides group, device and dtype."""
        return None

    def _compare(self, buckets: list[Bucket]) -> tuple[list[Tensor], list[Tensor]]:
        """Gram entries and coefficients of each bucket; counts the conflicts."""
        params = self._parameters
        self._projector.prepare(buckets)
        entries = self._projector.entries(buckets)
        device = params[0].device
        self._non_finite = torch.stack([(~e[:, 1:].isfinite()).any().to(device) for e in entries]).any()
        self._projector.count(buckets, entries, params)
        return entries, self._projector.coefficients(buckets, entries, params)

    def _projected_gradients(self, buckets: list[Bucket]) -> list[tuple[Tensor, Tensor]]:
        if not buckets:
            return []
        self._check_states(buckets)
        _, coefficients = self._compare(buckets)
        return [
            pair
            for bucket, c in zip(buckets, coefficients, strict=True)
            for pair in zip(bucket.params, self._projector.combine(bucket, c), strict=True)
        ]

    @property
    def conflict(self) -> Conflict:
        """Cosine, conflict rate and what was left alone, per unit; see `Conflict`."""
        return self._projector.conflict(self._parameters)

    def _warn_unless_reduced(self) -> None:
        if not self._reduced and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            warnings.warn(
                "backward() does not average over ranks: each rank now steps on its own gradients. "
                "Call all_reduce() of the optimizer between backward() and step().",
                stacklevel=4,
            )

    # ---- the step

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update the parameters with the projected gradient; both gradients stay as they are.

        Args:
            closure: evaluates the model again; gradients are enabled. If it returns a pair (task, general), `step` does
                all the rest: `zero_grad`, `backward` on the pair, projection, update. Otherwise it must have called
                `backward` itself, as for torch.optim.

        Returns:
            The closure's result, or None.
        """
        losses = None
        if closure is not None:
            with torch.enable_grad():
                losses = closure()
                if isinstance(losses, tuple | list):
                    if len(losses) != 2:
                        raise ValueError(f"closure: expected it to return (task, general), got {len(losses)} values.")
                    self.zero_grad()
                    self.backward(*losses)
        amp: dict[str, Tensor | None] = self.__dict__  # a GradScaler sets these two for the time of the call
        scale, found_inf = amp.get("grad_scale"), amp.get("found_inf")
        differentiable = bool(self.defaults.get("differentiable", False))
        with torch.set_grad_enabled(differentiable):
            if scale is not None:
                for p in self._parameters:
                    if p.grad is not None:
                        p.grad.mul_(scale.reciprocal().to(p.grad.device))
            self._forget_zeroed_gradients()
            buckets = [] if self._projected else self._buckets()
            if buckets and self._has_fused_update and not differentiable:
                # Before the update: it does not change .grad, and afterwards many gradients are out of the caches.
                self._remember_gradients_of_step()
                self._step_fused(buckets, found_inf)
            else:
                if buckets:
                    self._project_then_update(buckets, found_inf)
                else:
                    self._update(self._found_inf_in_either(found_inf))
                self._remember_gradients_of_step()
        self._stepped = True
        return losses

    def _step_fused(self, buckets: list[Bucket], found_inf: Tensor | None) -> None:
        """Conflict test, projection and update in one operator for each bucket."""
        alone = len(buckets) == 1 and found_inf is None and self._projector.rule is None
        if not alone:  # an operator looks at all of its own tensors before it writes, not at those of the next
            self._check_states(buckets)
        try:
            self._update_buckets(buckets, found_inf)
        except (AttributeError, KeyError, TypeError, ValueError, RuntimeError):
            self._check_states(buckets)
            raise

    def _update_buckets(self, buckets: list[Bucket], found_inf: Tensor | None) -> None:
        projector = self._projector
        if found_inf is None and projector.rule is None and (projector.scope != "global" or len(buckets) == 1):
            params = self._parameters
            entries = projector.new_entries(buckets, params)
            for bucket, e in zip(buckets, entries, strict=True):
                self._fused_update(bucket, e, None, None)
            projector.count(buckets, entries, params)
        else:  # these updates need a result of all gradients: compare all of them first
            for bucket, e, c in zip(buckets, *self._compare(buckets), strict=True):
                self._fused_update(bucket, e, c, self._found_inf_in_either(found_inf))

    def _check_states(self, buckets: list[Bucket]) -> None:
        """Raise RuntimeError where gradients or state of a parameter do not fit it."""
        for bucket in buckets:
            if self._has_fused_update:
                check_learning_rate(bucket.group["lr"], bucket.params[0])
            states = [self._states_read(p, bucket.group) for p in bucket.params]
            pairs = list(zip(bucket.task, bucket.general, strict=True))
            if all_fit(bucket.params, pairs, states):
                continue
            for p, (a, b), state in zip(bucket.params, pairs, states, strict=True):
                check_parameter(self.param_groups, p, {"task gradient": a, "general gradient": b}, state)

    def _states_read(self, p: Tensor, group: dict[str, Any]) -> dict[str, Any]:
        """The entries of a parameter's state that the update reads; None for a missing one, empty before the first."""
        return {}

    def _project_then_update(self, buckets: list[Bucket], found_inf: Tensor | None) -> None:
        """The optimizer's own step, with the projected gradients in the place of the task gradients."""
        before = [(p, p.grad) for bucket in buckets for p in bucket.params]
        try:
            for p, g in self._projected_gradients(buckets):
                p.grad = g
            self._update(self._found_inf_in_either(found_inf))
        finally:
            for p, a in before:
                p.grad = a

    def _found_inf_in_either(self, found_inf: Tensor | None) -> Tensor | None:
        """A GradScaler's flag, raised also by what is not finite about the general gradient."""
        if found_inf is None or self._non_finite is None:
            return found_inf
        return torch.maximum(found_inf, self._non_finite.to(found_inf))

    _has_fused_update = False  # whether there is an operator that projects and updates at once

    def _fused_update(
        self, bucket: Bucket, entries: Tensor, coefficients: Tensor | None, found_inf: Tensor | None
    ) -> None:
        """Project and update one bucket: by `coefficients`, or by ProGrad's, whose `entries` are then written."""
        raise NotImplementedError

    def _update(self, found_inf: Tensor | None) -> None:
        """Run the update on `.grad`, unless `found_inf` (0-d, given under a GradScaler) is above 0."""
        raise NotImplementedError

    # ---- torch.optim's own

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, as torch.optim does; `lambda_` may be given for it, like `lr`."""
        if "lambda_" in param_group:
            check_lambda(param_group["lambda_"])
        super().add_param_group(param_group)
        self._projector.grow(self._parameters)

    def state_dict(self) -> dict[str, Any]:
        """The state as in torch.optim; a rule with a state adds the entry "rule", which torch.optim does not read."""
        return self._with_rule_state(super().state_dict())

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state of this optimizer, or of the torch.optim optimizer that it stands on.

        As in torch.optim, states are not compared with their parameters here, but at the next step, before anything
        moves. RuntimeError if a rule's state is that of other parameters.
        """
        self._check_rule_state(state_dict)
        super().load_state_dict(state_dict)
        self._load_rule_state(state_dict)

    def _with_rule_state(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        rule = self._projector.rule_state(self._parameters)
        return state_dict | {"rule": rule} if rule else state_dict

    def _check_rule_state(self, state_dict: dict[str, Any]) -> None:
        self._projector.check_rule_state(state_dict.get("rule", {}), self._parameters)

    def _load_rule_state(self, state_dict: dict[str, Any]) -> None:
        self._projector.load_rule_state(state_dict.get("rule", {}), self._parameters)

    def __getstate__(self) -> dict[str, Any]:
        # pending gradients stay behind, as .grad does when a parameter is copied or pickled
        own = ("lambda_", "_projector")
        return super().__getstate__() | {name: self.__dict__[name] for name in own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        before = self.__dict__.get("param_groups", [])
        super().__setstate__(state)
        keep_lambdas(before, self.param_groups)
        if "_general" not in self.__dict__:
            self._forget_gradients()


def keep_lambdas(before: list[dict[str, Any]], now: list[dict[str, Any]]) -> None:
    """A checkpoint of the plain optimizer has no `lambda_`: a group that had its own keeps it."""
    for old, group in zip(before, now, strict=False):
        if "lambda_" in old:
            group.setdefault("lambda_", old["lambda_"])


def check_lambda(lambda_: Any) -> None:
    """Raise TypeError or ValueError unless `lambda_` is a number of at least 0."""
    if isinstance(lambda_, bool) or not isinstance(lambda_, int | float):
        raise TypeError(f"lambda_: expected a number, got {type(lambda_).__name__}. 1.0 removes the whole conflict.")
    if not 0 <= lambda_ < float("inf"):
        raise ValueError(f"lambda_: expected a number of at least 0, got {lambda_}. 1.0 removes the whole conflict.")


def _check_loss(name: str, loss: Any) -> None:
    if not isinstance(loss, Tensor):
        raise TypeError(f"{name}: expected a loss tensor, got {type(loss).__name__}.")
    if loss.numel() != 1:
        raise ValueError(f"{name}: expected a loss of one element, got shape {tuple(loss.shape)}. Take its mean.")
    if not loss.requires_grad:
        raise ValueError(
            f"{name}: expected a loss with a graph, got one that does not require grad. Compute it from the "
            "parameters, outside of torch.no_grad()."
        )


def _check_gradients(name: str, gradients: Iterable[Tensor | None]) -> None:
    found = [gradient for gradient in gradients if gradient is not None]
    if not found:
        raise ValueError(
            f"{name}: expected a loss that depends on a parameter of this optimizer, got one that reaches none. "
            "Compute it from the parameters that the optimizer was built with."
        )
    check_pairs(found, [None] * len(found))


def _accumulate(known: Tensor | None, new: Tensor) -> Tensor:
    """The accumulated gradient: in place, in memory of its own (autograd may return shared or expanded tensors)."""
    if known is None:
        return new.clone()
    if known.requires_grad or new.requires_grad:
        return known + new
    return known.add_(new)
