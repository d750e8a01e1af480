"""Parameters of which each rank has a part: DTensors, as `fully_shard` and `parallelize_module` make them.

All that the optimizers know about them:

    gradients     two real backwards with `.grad` set aside: `fully_shard` gathers parameters and reduces gradients in
                  hooks of a backward, and what it computes goes to `.grad` alone
    Gram entries  of the part that each rank has, then summed over the ranks, three numbers a unit, in one collective
    the rest      projection, rule and update of that part, which is a plain tensor
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from prograd_fast.ops.common import Scope
from prograd_fast.ops.projection import gram_formula, n_units, split_units
from prograd_fast.optim.one_backward import nodes_of, refuse_reentrant_checkpoints, release_graphs
from prograd_fast.optim.ranks import mean_over_ranks, others_answer
from prograd_fast.optim.sums import Gradients


def is_sharded(tensor: Any) -> bool:
    """Whether it is a DTensor; by name, since to import them takes longer than the rest of the package."""
    return type(tensor).__name__ == "DTensor"


def any_sharded(tensors: Iterable[Any]) -> bool:
    """Whether one of them is a DTensor."""
    return "DTensor" in {kind.__name__ for kind in set(map(type, tensors))}  # quickly: a step takes some 100 µs


def part_of(tensor: Any) -> Any:
    """The part of a tensor that this rank has, which may be empty; anything but a DTensor as it is."""
    if not is_sharded(tensor):
        return tensor
    with torch.no_grad():
        part = tensor.to_local()
    return part.wait() if hasattr(part, "wait") else part  # of a collective that goes on


def parts_of(tensors: list[Tensor]) -> list[Tensor]:
    """The part that this rank has of each."""
    return [part_of(tensor) for tensor in tensors] if any_sharded(tensors) else tensors


def part_number(p: Any) -> int:
    """Which of the different parts of a parameter this rank has: 0, 1, ...; 0 of a whole one."""
    number = 0
    if is_sharded(p):
        here = p.device_mesh.get_coordinate()
        for d in sorted(_shared_dims(p)):
            number = number * p.device_mesh.size(d) + here[d]
    return number


def like(whole: Tensor, part: Tensor) -> Tensor:
    """The part of this rank as a tensor that lies on the ranks as `whole` does; `part` itself if that is no DTensor."""
    if not is_sharded(whole):
        return part
    of: Any = whole
    result: Tensor = type(of).from_local(
        part, of.device_mesh, of.placements, run_check=False, shape=of.shape, stride=of.stride()
    )
    return result


def layout_of(tensor: Any) -> tuple[Any, ...] | None:
    """Mesh and placements of a DTensor."""
    return (tensor.device_mesh, tuple(tensor.placements)) if is_sharded(tensor) else None


# ---- which ranks


def ranks_of(mesh: Any) -> set[int]:
    """The ranks of a mesh."""
    return set(mesh.mesh.flatten().tolist())


def meshes_of(params: Iterable[Any]) -> list[Any]:
    """The meshes that parameters lie on."""
    return list(dict.fromkeys(p.device_mesh for p in params if is_sharded(p)))


def all_ranks(params: Sequence[Tensor]) -> "dist.ProcessGroup | None":
    """The group of all ranks, if each has a part of all that is trained."""
    trained = [p for p in params if p.requires_grad]
    every = set(range(dist.get_world_size()))
    shared = all(map(is_sharded, trained)) and all(ranks_of(mesh) == every for mesh in meshes_of(trained))
    return dist.group.WORLD if shared else None


def groups_that_agree(params: Sequence[Tensor], process_group: "dist.ProcessGroup | None") -> list[Any]:
    """The process groups whose ranks have to do the same: that of the optimizer, and those of the meshes outside it."""
    known = set() if process_group is None else set(dist.get_process_group_ranks(process_group))
    apart = [mesh for mesh in meshes_of(params) if not ranks_of(mesh) <= known]
    groups = [mesh.get_group(dim) for mesh in apart for dim in range(mesh.ndim)]
    return ([] if process_group is None else [process_group]) + groups


def averaged(params: Sequence[Tensor], process_group: "dist.ProcessGroup") -> list[bool]:
    """Whether the gradient of each parameter is that of all these ranks already, since each has a part of it.

    Raises:
        ValueError: only some of them have: a mean would mix different parts.
    """
    if not any_sharded(params):
        return [False] * len(params)
    ranks = set(dist.get_process_group_ranks(process_group))
    shared = {mesh: ranks & ranks_of(mesh) for mesh in meshes_of(params)}
    for mesh, both in shared.items():
        if 1 < len(both) < len(ranks):
            raise ValueError(
                "process_group: expected ranks that all share a parameter, or of which this one alone does, got "
                f"{sorted(ranks)} where {sorted(ranks_of(mesh))} share one. Give the group of the mesh dimension whose "
                'ranks see different batches, such as mesh.get_group("data").'
            )
    return [is_sharded(p) and len(shared[p.device_mesh]) == len(ranks) for p in params]  # type: ignore[attr-defined]


def mean(
    params: Sequence[Tensor],
    gradients: Sequence[Gradients],
    process_group: "dist.ProcessGroup",
    weight: float | None,
) -> list[Gradients]:
    """`mean_over_ranks` of the gradients that are not averaged already."""
    apart = [i for i, done in enumerate(averaged(params, process_group)) if not done]
    parts = [[part_of(of[i]) for i in apart] for of in gradients]
    of_parts = mean_over_ranks(parts_of([params[i] for i in apart]), parts, process_group, weight)
    means: list[Gradients] = []
    for came, new in zip(gradients, of_parts, strict=True):
        known = {i: like(params[i], g) for i, g in zip(apart, new, strict=True)}
        means.append([known.get(i, g) for i, g in enumerate(came)])
    return means


# ---- gradients


def gradients_of_shards(
    task: Tensor, general: Tensor | None, params: Sequence[Tensor], *, retain_graph: bool
) -> tuple[Gradients, Gradients | None]:
    """As `gradients_of_both`, by two real backwards.

    `.grad` and post-accumulate hooks of everything in the graphs are set aside meanwhile. Parameters under
    `fully_shard` that are not among `params` cannot be seen in a graph: theirs get both gradients.

    Args:
        task: one element.
        general: one element, or None.
        params: parameters, of which some are sharded.
        retain_graph: keep the graphs.

    Returns:
        As `gradients_of_both`, placed like the parameters.

    Raises:
        RuntimeError: a reentrant checkpoint is in a graph.
        ConnectionError: another rank has ended, or does not answer.
    """
    losses = {"task": task} if general is None else {"task": task, "general": general}
    graphs = {name: nodes_of(loss) for name, loss in losses.items()}
    for name, graph in graphs.items():
        refuse_reentrant_checkpoints(name, {kind.__name__ for kind in set(map(type, graph))})
    leaves = [node.variable for node in set().union(*graphs.values()) if hasattr(node, "variable")]
    with _set_aside({*params, *leaves}):
        found = []
        for i, loss in enumerate(losses.values(), 1):
            with others_answer():
                loss.backward(retain_graph=retain_graph or i < len(losses))
            found.append(tuple(_placed(p.grad, p) for p in params))
            for p in params:
                p.grad = None
    if not retain_graph:
        release_graphs(losses.values())
    return found[0], found[1] if general is not None else None


@contextmanager
def _set_aside(tensors: set[Tensor]) -> Iterator[None]:
    held = [(tensor, tensor.grad, tensor._post_accumulate_grad_hooks or {}) for tensor in tensors]
    waiting = [(hooks, dict(hooks)) for _, _, hooks in held if hooks]
    for tensor, _, hooks in held:
        tensor.grad = None
        hooks.clear()
    try:
        yield
    finally:
        for tensor, grad, _ in held:
            tensor.grad = grad
        for hooks, own in waiting:
            hooks.update(own)


def _placed(gradient: Any, p: Any) -> Tensor | None:
    """The gradient as the parameter lies on the ranks: a sum that is still to be taken over them is."""
    if gradient is not None and layout_of(gradient) != layout_of(p):
        gradient = gradient.redistribute(p.device_mesh, p.placements)
    result: Tensor | None = gradient
    return result


# ---- units


class Whole:
    """Some tensors, all of each: what a rule asks about them where no other rank has a part of one."""

    def gram(self, task: Sequence[Tensor], general: Sequence[Tensor], scope: Scope) -> Tensor:
        """As `prograd_fast.reference.gram`, of the tensors that all ranks together have."""
        return gram_formula(task, general, scope)

    def split(self, coefficients: Tensor, tensors: Sequence[Tensor], scope: Scope) -> Sequence[Tensor]:
        """Coefficients (U, 2) of all units as those of each tensor's own units, as far as this rank has them."""
        return split_units(coefficients, tensors, scope)

    def any(self, flags: Sequence[Tensor]) -> Sequence[Tensor]:
        """Flags, 0-d, each set where it is on one of the ranks."""
        return flags

    def gathered(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        """The tensors that all ranks together have."""
        return tensors

    def own(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        """Of tensors that all ranks have, what this one has in its parts."""
        return tensors


WHOLE = Whole()


class Shards(Whole):
    """Some parameters, of which ranks have parts; their tensors are the parts of this rank.

    Units are those of the whole parameters, the same on all ranks: with scope "row" a rank knows the entries of all
    rows, since the counters, the memory of rules, and AGEM are about all of them.

    Args:
        params: parameters, whole ones among them.
        scope: of the units.

    Attributes:
        params: as given.
        scope: of the entries of parts, "tensor" or "row": for "global" those of the tensors are added up.
    """

    def __init__(self, params: Sequence[Tensor], scope: Scope) -> None:
        self.params = list(params)
        self.scope: Scope = "row" if scope == "row" else "tensor"
        self._global = scope == "global"
        self._dims: dict[Any, set[int]] = {mesh: set() for mesh in meshes_of(params)}  # that are shared out over
        of_mesh: dict[Any, list[Tensor]] = {mesh: [] for mesh in self._dims}  # units
        for p in self.params:
            if is_sharded(p):
                self._dims[p.device_mesh] |= _shared_dims(p)  # type: ignore[attr-defined]
        mine, counted, n = [], [], 0
        for p in self.params:
            units = torch.arange(n, n + n_units(p, self.scope))
            own = units[_own_rows(p)] if is_sharded(p) and self.scope == "row" and p.dim() else units
            mine.append(own)
            counted.append(torch.full((len(own),), self._counts(p)))
            if is_sharded(p):
                of_mesh[p.device_mesh].append(units)  # type: ignore[attr-defined]
            n += len(units)
        device = self.params[0].device
        self._n_units = n
        self._mine = torch.cat(mine).to(device)
        self._counted = torch.cat(counted).nonzero()[:, 0].to(device)
        self._of_mesh = {mesh: torch.cat(units).to(device) for mesh, units in of_mesh.items()}

    def sums(self, entries: Tensor) -> Tensor:
        """Gram entries of all units, (U, 3), from those of the units of which this rank has a part.

        One collective for each mesh, or for each of its dimensions that parameters are shared out over.
        """
        sums = entries.new_zeros(self._n_units, 3)
        sums[self._mine[self._counted]] = entries[self._counted]
        for mesh, units in self._of_mesh.items():
            sums[units] = self._reduced(sums[units], mesh, dist.ReduceOp.SUM)
        return sums.sum(0, keepdim=True) if self._global else sums

    def of_parts(self, coefficients: Tensor) -> Tensor:
        """The coefficients of the units of which this rank has a part, from those of all, (U, 2)."""
        return coefficients if self._global else coefficients[self._mine]

    def gram(self, task: Sequence[Tensor], general: Sequence[Tensor], scope: Scope) -> Tensor:
        """As `Whole.gram`."""
        return self.sums(gram_formula(task, general, self.scope))

    def split(self, coefficients: Tensor, tensors: Sequence[Tensor], scope: Scope) -> Sequence[Tensor]:
        """As `Whole.split`."""
        return split_units(self.of_parts(coefficients), tensors, scope)

    def any(self, flags: Sequence[Tensor]) -> Sequence[Tensor]:
        """As `Whole.any`; in one collective, as `sums`."""
        all_flags = torch.stack([flag.to(self._mine.device) for flag in flags]).float()
        for mesh in self._dims:
            all_flags = self._reduced(all_flags, mesh, dist.ReduceOp.MAX)
        return [one.to(flag.device) for one, flag in zip(all_flags.bool(), flags, strict=True)]

    def gathered(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        """As `Whole.gathered`."""
        wholes: list[Any] = [like(p, tensor) for p, tensor in zip(self.params, tensors, strict=True)]
        with others_answer():
            return [part_of(whole.full_tensor()) if is_sharded(whole) else whole for whole in wholes]

    def own(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        """As `Whole.own`."""
        wholes: list[Any] = [_replicated(p, tensor) for p, tensor in zip(self.params, tensors, strict=True)]
        return [part_of(_placed(whole, p)) for p, whole in zip(self.params, wholes, strict=True)]

    def _counts(self, p: Any) -> bool:
        """Whether this rank's part counts in a sum: of the ranks that have the same part, the first one's does."""
        if not is_sharded(p):
            return True
        here = p.device_mesh.get_coordinate()
        return all(here[d] == 0 for d in self._dims[p.device_mesh] - _shared_dims(p))

    def _reduced(self, values: Tensor, mesh: Any, operation: Any) -> Tensor:
        result = values.to(mesh.device_type)  # parameters may wait on the host
        with others_answer():
            for dim in sorted(self._dims[mesh]):
                dist.all_reduce(result, operation, group=mesh.get_group(dim))
        return result.to(values.device)


def _shared_dims(p: Any) -> set[int]:
    """The dimensions of its mesh that a parameter is shared out over."""
    return {d for d, placement in enumerate(p.placements) if not placement.is_replicate()}


def _own_rows(p: Any) -> slice:
    """The rows of a parameter of which this rank has a part."""
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    shape, offset = compute_local_shape_and_global_offset(p.shape, p.device_mesh, p.placements)
    return slice(offset[0], offset[0] + shape[0])


def _replicated(p: Any, tensor: Tensor) -> Any:
    """A tensor that all ranks have, as a DTensor on the mesh of a parameter."""
    if not is_sharded(p):
        return tensor
    from torch.distributed.tensor import Replicate

    return type(p).from_local(tensor, p.device_mesh, [Replicate()] * p.device_mesh.ndim, run_check=False)


def check_sharded(p: Any) -> None:
    """Raise TypeError for parameters that are shared out in a way that has no parts, or that cannot be read here."""
    if type(p) is torch.nn.Parameter:
        return
    if type(p).__name__ == "FlatParameter":
        raise TypeError(
            "backward: expected whole parameters or DTensors, got one of FullyShardedDataParallel (FSDP1), of shape "
            f"{tuple(p.shape)}. Shard the model with torch.distributed.fsdp.fully_shard."
        )
    if is_sharded(p) and any(placement.is_partial() for placement in p.placements):
        raise TypeError(
            f"backward: expected a parameter whose parts can be read, got placements {tuple(p.placements)} for one of "
            f"shape {tuple(p.shape)}. Redistribute it to Shard or Replicate."
        )
