"""The base of ProGradAdamW, ProGradSGD and ProGrad: two gradients in, the projected one in `.grad`."""

import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.amp import GradScaler
from torch.autograd.graph import increment_version
from torch.optim import Optimizer

from prograd_fast.ops.common import SCOPES, Scope, accumulation_dtype
from prograd_fast.ops.projection import all_units
from prograd_fast.optim.bucket import Bucket
from prograd_fast.optim.checks import (
    check_dense,
    check_gradients,
    check_groups,
    check_lambda,
    check_loss,
    check_parameters,
)
from prograd_fast.optim.conflict import Conflict
from prograd_fast.optim.members import Member, add_to_grad, drop_grads, is_dense, members_of
from prograd_fast.optim.noise_floor import check_noise_floor
from prograd_fast.optim.one_backward import gradients_of_both
from prograd_fast.optim.precision import Precision
from prograd_fast.optim.projector import Projector, nan_where_lost
from prograd_fast.optim.ranks import Agreement, check_ranks, check_weight, relative_weight, several_ranks
from prograd_fast.optim.rules import Rule
from prograd_fast.optim.scaling import LossScaling, scale_of
from prograd_fast.optim.shards import (
    all_ranks,
    any_sharded,
    averaged,
    gradients_of_shards,
    groups_that_agree,
    mean,
    part_of,
)
from prograd_fast.optim.states import all_fit, check_learning_rate, check_parameter
from prograd_fast.optim.sums import Gradients, Sums

_AS_TORCH = Precision()


class TwoLosses(NamedTuple):
    """The arguments of `backward_and_update`, as `step` gets them from a closure."""

    task: Tensor
    general: Tensor | None
    scaler: GradScaler | None = None
    weight: float | None = None

    @classmethod
    def of(cls, result: Any) -> "TwoLosses | None":
        """Two losses that a closure has returned; None if its result is something else."""
        if isinstance(result, TwoLosses):
            return result
        if not isinstance(result, tuple | list) or len(result) != 2:
            return None
        losses = all(isinstance(loss, Tensor) and loss.numel() == 1 and loss.requires_grad for loss in result)
        return cls(*result) if losses else None


class TwoGradients(Optimizer):
    """An optimizer that forms the gradients of a task and of a general loss, and puts the projected one in `.grad`.

    `backward(task, general)` is to two losses what `loss.backward()` is to one. What it adds to `.grad` is the
    projected gradient, and nothing else is pending: from there on everything is as with any torch.optim optimizer. The
    order is: both gradients, the sum of an `accumulate()` block, the mean over ranks, projection, `.grad`; then
    whatever anybody does to `.grad`; then `step`. Without `backward` it is the optimizer that it stands on.
    """

    # A proxy of an optimizer may run our methods on itself, and hands on what it reads but not what it sets. So all
    # that changes is kept in objects that are changed, and no attribute is set after construction.
    _projector: Projector
    _sums: Sums
    _scaling: LossScaling
    _agreement: Agreement
    _precision: Precision
    _said: set[str]  # warnings that were given
    _process_group: "weakref.ref[dist.ProcessGroup] | None"

    def _init_two_gradients(
        self,
        lambda_: float,
        scope: Scope,
        rule: Rule | None,
        noise_floor: float | None,
        process_group: "dist.ProcessGroup | None",
        precision: Precision = _AS_TORCH,
    ) -> None:
        check_lambda(lambda_)
        if rule is not None and not isinstance(rule, Rule):
            raise TypeError(f"rule: expected an object of prograd_fast.rules, got {type(rule).__name__}.")
        if rule is not None and lambda_ != 1:
            raise ValueError(f"lambda_: expected it in the rule, got {lambda_} beside {rule!r}. Leave lambda_ out.")
        if scope not in SCOPES:
            raise ValueError(f"scope: expected one of {', '.join(SCOPES)}, got {scope!r}.")
        if process_group is not None and not isinstance(process_group, dist.ProcessGroup):
            raise TypeError(
                f"process_group: expected a torch.distributed.ProcessGroup or None, got "
                f"{type(process_group).__name__}. torch.distributed.group.WORLD has all ranks, after "
                "init_process_group()."
            )
        self._projector = Projector(lambda_, scope, rule, noise_floor)
        self._sums = Sums()
        self._agreement = Agreement()
        self._scaling = LossScaling()
        self._said = set()
        self._precision = precision
        # a group that is still held when the interpreter ends aborts it (gloo's threads, torch 2.14)
        self._process_group = None if process_group is None else weakref.ref(process_group)

    @property
    def _parameters(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"]]

    @property
    def lambda_(self) -> float:
        """λ of groups that were given none; to be changed in `param_groups`."""
        return self._projector.lambda_

    @property
    def scope(self) -> Scope:
        """The unit that is tested and projected as a whole."""
        return self._projector.scope

    @property
    def rule(self) -> Rule | None:
        """How the gradients are combined; None for ProGrad with each group's λ."""
        return self._projector.rule

    @property
    def noise_floor(self) -> float | None:
        """‖b‖/‖a‖ up to which b is rounding and left out; None for `NOISE_FLOORS` by dtype; may be set."""
        return self._projector.noise_floor

    @noise_floor.setter
    def noise_floor(self, noise_floor: float | None) -> None:
        check_noise_floor(noise_floor)
        self._projector.noise_floor = noise_floor

    @property
    def conflict(self) -> Conflict:
        """Cosine, conflict rate and what was left alone up to now, per unit: a copy; see `Conflict`."""
        return self._projector.conflict(self._parameters)

    @property
    def cosine(self) -> Tensor:
        """`conflict.cosine` alone, (U,) float32, by fewer kernels: nothing is counted."""
        return self._projector.cosine(self._parameters)

    # ---- two gradients in, one out

    def backward(
        self,
        task: Tensor,
        general: Tensor | None = None,
        *,
        retain_graph: bool = False,
        create_graph: bool = False,
        scaler: GradScaler | None = None,
        weight: float | None = None,
    ) -> None:
        """Differentiate both losses, and add the projected gradient to `.grad`.

            g = a - λ·min(0, ⟨a,b⟩)/‖b‖²·b,   .grad = .grad + g

        with a and b the gradients of the task and the general loss, or what the rule makes of them. Each parameter of
        this optimizer that one of the losses reaches gets a `.grad`; those of other optimizers get nothing. Hooks of
        tensors and modules run once for each loss, as in two backwards; post-accumulate hooks once for each parameter,
        when all `.grad` are written. Calls in a row add their own projections; for the projection of a sum see
        `accumulate`.

        Args:
            task: the loss to minimise, one element.
            general: the loss whose gradient must not be worked against, one element; None for rules on one gradient.
            retain_graph: keep the graph for another backward (default: False).
            create_graph: make `.grad` differentiable itself (default: False).
            scaler: a `torch.amp.GradScaler`. Both losses are multiplied by its scale, and NaN is written into `.grad`
                where the general gradient is not finite, so that the scale falls. Then `scaler.unscale_`, `scaler.step`
                and `scaler.update` follow as for any optimizer.
            weight: of this rank in the mean over `process_group`, the size of its batch if they differ (default: 1).

        Raises:
            TypeError: a loss is not a tensor, a gradient is sparse or complex, or a parameter is of FSDP1.
            ValueError: a loss has several elements, no graph, or reaches none of the parameters; or λ of a group; or
                the ranks do not agree on the optimizer, which the first call looks at; or `create_graph` with sharded
                parameters.
            RuntimeError: there are several ranks and no `process_group`; or a reentrant checkpoint.
            ConnectionError: another rank has ended, or does not answer within the time-out.
        """
        groups = self._checked_groups()
        if create_graph and any_sharded(groups):
            raise ValueError(
                "create_graph: expected False where parameters are sharded, got True: theirs have no graph."
            )
        if weight is not None and self._sums.depth:
            raise ValueError(
                "weight: expected it in the backward that closes the sum, got one inside accumulate(). There it is the "
                "size of this rank's whole sum."
            )
        a, b = self._gradients(list(groups), TwoLosses(task, general, scaler, weight), retain_graph, create_graph)
        if self._sums.depth:
            self._sums.add(list(groups), a, b, scaler)
            return
        with torch.set_grad_enabled(create_graph):
            self._add_projected(members_of(groups, a, b), scaler)

    def _add_projected(self, members: list[Member], scaler: GradScaler | None) -> None:
        scale = scale_of(scaler, members[0][0].device)
        buckets = self._projector.buckets(members, self.state, scale)
        adjust = None if scale is None else nan_where_lost
        pairs = self._projector.project(buckets, self._parameters, self.state, adjust)
        self._sums.drop()
        for p, g in pairs:
            add_to_grad(p, g)
        self._scaling.projected(scaler)
        for p, _ in pairs:
            hooks = p._post_accumulate_grad_hooks
            for hook in list(hooks.values()) if hooks else ():
                hook(p)

    @contextmanager
    def accumulate(self) -> Iterator[None]:
        """Within this block `backward` only adds up; the next one outside of it projects the whole sum.

            with opt.accumulate():
                for task, general in micro_batches[:-1]: opt.backward(task, general)
            opt.backward(*micro_batches[-1]);  opt.step()

        It is the idiom of DistributedDataParallel's `no_sync`. Inside, `.grad`, `conflict` and the rule's memory stay
        as they are, and nothing is sent to other ranks, but that `fully_shard` reduces the gradients of each backward,
        since it has room for one sum of whole gradients, not for two. `zero_grad` of this optimizer drops the sum, and
        so does an exception that leaves the block. `step` raises RuntimeError while there is one.
        """
        self._sums.depth += 1
        try:
            yield
        except BaseException:
            self._sums.drop()
            raise
        finally:
            self._sums.depth -= 1

    def backward_and_update(
        self,
        task: Tensor,
        general: Tensor | None = None,
        *,
        scaler: GradScaler | None = None,
        weight: float | None = None,
    ) -> None:
        """Backward, conflict test, projection and update in one: `backward` and `step` without `.grad` in between.

        What `.grad` held before counts as task gradient. Afterwards it is None for every parameter that was updated.
        Hooks of the step and schedulers see a step; post-accumulate hooks do not run, since no `.grad` is written. The
        wrapper `ProGrad`, and an optimizer that is `differentiable` or has a parameter twice, call `backward` and then
        `step`.

        Args:
            task: as for `backward`.
            general: as for `backward`.
            scaler: as for `backward`; gradients are unscaled, and where one is not finite nothing is updated. Call
                `scaler.update()` afterwards, and neither `unscale_` nor `step`.
            weight: as for `backward`.

        Raises:
            As `backward` and `step`; RuntimeError also within `accumulate()`.
        """
        losses = TwoLosses(task, general, scaler, weight)
        if scaler is None or not scaler.is_enabled() or self._has_one_operator():
            self.step(lambda: losses)
        else:
            self._put_into_grad(losses)
            scaler.step(self)
            drop_grads(self._parameters)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Set `.grad` to None or zero, as torch.optim does, and drop the sum of an `accumulate()` block.

        Args:
            set_to_none: set `.grad` to None (default) instead of zero.
        """
        self._sums.drop()
        super().zero_grad(set_to_none)

    # ---- the step

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update the parameters by `.grad`, as the torch.optim optimizer does that this one stands on.

        Args:
            closure: evaluates the model again; gradients are enabled. If it returns two losses of one element that
                require grad, (task, general), and has not called `backward` of this optimizer, they go through
                `backward_and_update`. Otherwise it must have called a backward itself, as for torch.optim.

        Returns:
            The closure's result, or None.

        Raises:
            RuntimeError: the sum of an `accumulate()` block is not projected yet; or a gradient or state does not fit
                its parameter.
        """
        result, projections = None, self._projector.projections
        if closure is not None:
            with torch.enable_grad():
                result = closure()
            losses = TwoLosses.of(result)
            if losses is not None and self._projector.projections == projections:
                self._backward_and_step(losses)
                return result
        if self._sums:
            raise RuntimeError(
                "step: expected a backward() outside of accumulate(), which projects the sum, before the update; got a "
                "sum that is not projected. Call zero_grad() to drop it."
            )
        if not torch.compiler.is_compiling() and not self._projector.projections:
            self._say_that_nothing_was_projected()
        self._plain_step()
        return result

    def _say_that_nothing_was_projected(self) -> None:
        if "nothing was projected" not in self._said and any(map(_moves, self.param_groups)):
            self._said.add("nothing was projected")
            warnings.warn(
                f"{type(self).__name__} steps, and it never got a general gradient: nothing was projected. Call "
                "opt.backward(task, general) in the place of loss.backward().",
                stacklevel=5,
            )

    def _plain_step(self) -> None:
        if not self._update_at_once():
            if self._has_fused_update:
                owners = [(p, group) for group in self.param_groups for p in group["params"] if is_dense(p.grad)]
                self._check_states([(p, group, p.grad) for p, group in owners], ("gradient",))
            self._update()
        self._projector.memory.settle([p for p in self._parameters if p.grad is not None], self.state)

    def _backward_and_step(self, losses: TwoLosses) -> None:
        if self._has_one_operator():
            members = self._members_with_grad(losses)
            with torch.no_grad():
                self._update_by_both(members, losses.scaler)
        else:
            self._put_into_grad(losses)
            self._plain_step()
            drop_grads(self._parameters)

    def _put_into_grad(self, losses: TwoLosses) -> None:
        """Replace `.grad` by the projection of what it held and the gradients of both losses."""
        members = self._members_with_grad(losses)
        held = [(member[0], member[0].grad) for member in members]
        drop_grads([p for p, _ in held])
        try:
            with torch.no_grad():
                self._add_projected(members, losses.scaler)
        except BaseException:
            for p, grad in held:
                p.grad = grad
            raise

    def _members_with_grad(self, losses: TwoLosses) -> list[Member]:
        """The gradients of both losses, with `.grad` as a part of the task gradient."""
        if self._sums.depth:
            raise RuntimeError(
                "backward_and_update: expected to be called outside of accumulate(), where a sum can be projected; got "
                "a call inside. Inside, call backward()."
            )
        groups = self._checked_groups()
        params = list(groups)
        a, b = (dict(zip(params, g, strict=True)) for g in self._gradients(params, losses, False, False))
        with torch.no_grad():
            for group in self.param_groups:
                for p in group["params"]:
                    held, task = p.grad, a.get(p)
                    if held is not None:  # torch.optim updates a frozen parameter with .grad too
                        groups.setdefault(p, group)
                        a[p] = held if task is None else held + task
        order = [p for p in dict.fromkeys(self._parameters) if p in groups]  # torch allows one twice
        return members_of({p: groups[p] for p in order}, [a.get(p) for p in order], [b.get(p) for p in order])

    def _update_by_both(self, members: list[Member], scaler: GradScaler | None) -> None:
        """Conflict test, projection and update in one operator for each bucket."""
        scale = scale_of(scaler, members[0][0].device)
        # an operator looks at all of its own tensors before it writes, not at those of the next
        if len(members) > 1 or scale is not None or self._projector.rule is not None:
            self._check_states(members)
        buckets = self._projector.buckets(members, self.state, scale, self._bucket_key)
        found_inf: list[Tensor] = []

        def unscale(entries: list[Tensor], coefficients: list[Tensor]) -> list[Tensor]:
            # ‖a‖² may overflow where a does not: as a GradScaler, by its elements; those of another rank's part make
            # ⟨a,b⟩ not finite
            finite = [e[:, 1:].isfinite().all() for e in entries]
            finite += [a.isfinite().all() for bucket in buckets for a in bucket.task]
            found_inf.append((~torch.stack([one.to(finite[0].device) for one in finite]).all()).float())
            return [c / scale.to(c) for c in coefficients] if scale is not None else coefficients

        def update(bucket: Bucket, entries: Tensor, coefficients: Tensor | None) -> None:
            skip = found_inf[0].to(entries.device) if found_inf else None
            self._fused_update(bucket, entries, coefficients, skip)

        try:
            self._projector.run(buckets, self._parameters, self.state, update, None if scale is None else unscale)
        except (AttributeError, KeyError, TypeError, ValueError, RuntimeError):
            self._check_states(members)
            raise
        self._sums.drop()
        if scaler is not None and scale is not None:
            self._scaling.tell(scaler, found_inf[0])
        self._scaling.projected(scaler)
        updated = [member[0] for member in members]
        if any_sharded(updated):
            increment_version(updated)  # their parts alone were told
        self._projector.memory.settle(updated, self.state)
        drop_grads(updated)

    def _gradients(
        self, params: list[Tensor], losses: TwoLosses, retain_graph: bool, create_graph: bool
    ) -> tuple[Gradients, Gradients]:
        """The gradients of both losses; outside of `accumulate()` with the sum, and averaged over the ranks."""
        task, general, scaler, weight = losses
        check_loss("task", task)
        if general is not None:
            check_loss("general", general)
        check_weight(weight)
        self._sums.check_scaler(scaler)
        process_group, sharded = self._ranks(), any_sharded(params)
        if sharded or (process_group is not None and not self._sums.depth):
            self._agreement.check(self.param_groups, self._settings, lambda: groups_that_agree(params, process_group))
        if sharded and weight is not None and process_group is not None and any(averaged(params, process_group)):
            # what averages over the ranks in the backward itself knows no weights
            if self._sums:
                raise ValueError(
                    "weight: expected None in the backward that closes a sum of sharded gradients, each of which was "
                    f"averaged over the ranks in its own backward, got {weight}. Multiply the losses instead."
                )
            share = relative_weight(weight, process_group, task.device)
            task, general, weight = task * share, None if general is None else general * share, None
        if scaler is not None:
            task = scaler.scale(task)
            general = None if general is None else scaler.scale(general)
        if sharded:
            of_task, of_general = gradients_of_shards(task, general, params, retain_graph=retain_graph)
        else:
            of_task, of_general = gradients_of_both(
                task, general, params, retain_graph=retain_graph, create_graph=create_graph
            )
        check_gradients("task", of_task, params)
        if of_general is not None:
            check_gradients("general", of_general, params)
        a: Gradients = of_task
        b: Gradients = of_general or [None] * len(params)
        if self._sums.depth:
            return a, b
        a, b = self._sums.with_these(params, a, b)
        if process_group is not None:
            known = [a, b] if any(gradient is not None for gradient in b) else [a]
            means = mean(params, known, process_group, weight)
            a, b = means[0], means[1] if len(means) > 1 else b
        return a, b

    def _ranks(self) -> "dist.ProcessGroup | None":
        if self._process_group is None:
            return all_ranks(self._parameters) if several_ranks() else None
        process_group = self._process_group()
        if process_group is None:
            raise RuntimeError("backward: expected a process group that is there, got one that was destroyed.")
        return process_group

    def _checked_groups(self) -> dict[Tensor, dict[str, Any]]:
        """The group of each parameter that requires grad."""
        check_ranks(self._ranks())
        check_groups(self.param_groups, self._projector.rule)
        groups: dict[Tensor, dict[str, Any]] = {}
        for group in self.param_groups:
            for p in group["params"]:
                if p.requires_grad:
                    groups.setdefault(p, group)
        if not groups:
            raise ValueError("backward: expected parameters that require grad, got an optimizer of frozen ones only.")
        check_parameters(groups)
        return groups

    def _settings(self) -> dict[str, Any]:
        """All that the ranks have to agree on besides the parameter groups."""
        kind = type(getattr(self, "optimizer", self)).__name__
        return {
            "optimizer": kind,
            "scope": self.scope,
            "rule": repr(self.rule),
            "noise_floor": self.noise_floor,
            "state_dtype": self._precision.state_dtype,
            "stochastic_rounding": self._precision.seed,
        }

    @property
    def _step_supports_amp_scaling(self) -> bool:
        rule = self._projector.rule
        return self._scaling.asked(rule, bool(rule and (rule.unit_memory or rule.parameter_memory)))

    @_step_supports_amp_scaling.setter
    def _step_supports_amp_scaling(self, value: bool) -> None:  # torch.optim does so for a fused update
        self._scaling.update_unscales = value

    # ---- what the optimizers fill in

    _has_fused_update = False  # whether there is an operator that projects and updates at once

    def _has_one_operator(self) -> bool:
        """Whether `backward_and_update` can go through one operator."""
        if not self._has_fused_update or self.defaults.get("differentiable", False):
            return False
        params = self._parameters
        return len(params) == 1 or len(params) == len(set(params))

    def _bucket_key(self, p: Tensor) -> Any:
        """A value that all parameters of one fused update must share, besides group, device and dtype."""
        return None

    def _fused_update(
        self, bucket: Bucket, entries: Tensor, coefficients: Tensor | None, found_inf: Tensor | None
    ) -> None:
        """Project and update one bucket: by `coefficients`, or by ProGrad's, whose `entries` are then written."""
        raise NotImplementedError

    def _states_read(self, p: Tensor, group: dict[str, Any]) -> dict[str, Any]:
        """The entries of a parameter's state that the update reads; None for a missing one, empty before the first."""
        return {}

    def _update_at_once(self) -> bool:
        """Check and run the update on `.grad` in one call; False, and nothing done, where `_update` must."""
        return False

    def _update(self) -> None:
        """Run the update on `.grad`."""
        raise NotImplementedError

    def _is_traced(self) -> bool:
        """Whether torch.compile looks on, which cannot have torch.optim's step in a graph without a break."""
        return torch.compiler.is_compiling() and self._has_one_operator()

    @torch.no_grad()
    def _update_by_operator(self) -> None:
        """The update on `.grad` by the operator that projects, whose coefficients leave the gradient as it is."""
        buckets: dict[Any, Bucket] = {}
        for g, group in enumerate(self.param_groups):
            for p in group["params"]:
                if p.grad is not None:
                    check_dense("step", [p.grad], [p])
                    kind = (g, p.device, p.grad.dtype, self._bucket_key(p))
                    bucket = buckets.setdefault(kind, Bucket(group, 0.0, 0.0))
                    bucket.params.append(p)
                    bucket.task.append(part_of(p.grad))
        for bucket in buckets.values():
            bucket.general = bucket.task
            units, dtype = all_units(bucket.task, self.scope), accumulation_dtype(bucket.task[0])
            coefficients = bucket.task[0].new_zeros(units, 2, dtype=dtype)
            coefficients[:, 0] = 1
            self._fused_update(bucket, coefficients.new_empty(units, 3), coefficients, None)

    def _check_states(
        self, members: Sequence[Any], names: Sequence[str] = ("task gradient", "general gradient")
    ) -> None:
        """Raise RuntimeError where gradients or state of a parameter do not fit it."""
        states = [self._states_read(p, group) for p, group, *_ in members]
        for p, group, *_ in members:
            check_learning_rate(group["lr"], p)
        if all_fit([member[0] for member in members], [member[2:] for member in members], states):
            return
        for (p, _, *gradients), state in zip(members, states, strict=True):
            check_parameter(self.param_groups, p, dict(zip(names, gradients, strict=True)), state)

    # ---- torch.optim's own

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, as torch.optim does; `lambda_` may be given for it, like `lr`."""
        if isinstance(param_group, dict):  # else torch.optim complains
            self._projector.add_lambda(param_group)
        super().add_param_group(param_group)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state of this optimizer, or of the torch.optim optimizer that it stands on.

        As in torch.optim, states are not compared with their parameters here, but at the next step, before anything
        moves. A group without `lambda_` keeps the one that it had.
        """
        with self._precision.loading(self):
            super().load_state_dict(state_dict)
        self._projector.memory.forget_waiting()

    def __getstate__(self) -> dict[str, Any]:
        # sums stay behind, as .grad does when a parameter is copied or pickled; so does the process group
        own = ("_projector", "_scaling", "_said", "_precision")
        return super().__getstate__() | {name: self.__dict__[name] for name in own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        before = self.__dict__.get("param_groups", [])
        super().__setstate__(state)
        self.__dict__.setdefault("_sums", Sums())
        self.__dict__.setdefault("_agreement", Agreement())
        self.__dict__.setdefault("_process_group", None)
        self.__dict__.setdefault("_precision", _AS_TORCH)
        keep_lambdas(before, self.param_groups, self._projector.rule)


def _moves(group: dict[str, Any]) -> bool:
    """Whether a group's rate is not 0, with which torch.distributed.checkpoint steps to make a state."""
    lr = group.get("lr")
    return bool(lr != 0) if isinstance(lr, (int, float)) or (isinstance(lr, Tensor) and lr.is_cpu) else True


def keep_lambdas(before: list[dict[str, Any]], now: list[dict[str, Any]], rule: Rule | None) -> None:
    """A loaded group keeps the λ that it had where the checkpoint has none; beside a rule it has none."""
    for group in now if rule is not None else ():
        group.pop("lambda_", None)
    for old, group in zip(before, now, strict=False):
        if "lambda_" in old:
            group.setdefault("lambda_", old["lambda_"])
