"""The ranks of a process group: whether they agree, whether they answer, and the mean of their gradients."""

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def several_ranks() -> bool:
    """Whether this process is one of several that run together."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def check_ranks(process_group: "dist.ProcessGroup | None") -> None:
    """Raise RuntimeError where there are several ranks and nobody has said what they are to each other."""
    if process_group is None and several_ranks():
        raise RuntimeError(
            f"backward: {dist.get_world_size()} ranks run, and each would step on its own gradients: backward() goes "
            "past the reduction of DistributedDataParallel. Build the optimizer with "
            "process_group=torch.distributed.group.WORLD, which averages over the ranks; where each rank trains a "
            "model of its own, with a group of one rank (torch.distributed.new_subgroups(1)[0])."
        )


@contextmanager
def others_answer() -> Iterator[None]:
    """Raise ConnectionError where another rank has died in a collective, or has not come to it within the time-out."""
    try:
        yield
    except RuntimeError as error:
        if not is_lost(error):
            raise
        raise ConnectionError(
            "backward: another process has ended, or did not answer within the time-out of init_process_group "
            f"({str(error).splitlines()[0]}). Start all of them again from the last checkpoint, as torchrun "
            "--max-restarts does by itself."
        ) from error


def is_lost(error: Exception) -> bool:
    """Whether a collective raised it because another rank does not answer."""
    return isinstance(error, dist.DistError) or "gloo" in str(error)


def first_difference(facts: Mapping[str, Any], process_group: "dist.ProcessGroup | None" = None) -> str | None:
    """Tell where processes are not about to do the same; the same answer on each.

    Digests are compared first: where all agree, 64 characters are sent.

    Args:
        facts: by name; can be pickled, and written by `repr` alike where they are alike.
        process_group: of the processes (default: None, all).

    Returns:
        The first fact that differs, with both values; None where all agree.
    """
    n_ranks = dist.get_world_size(process_group)
    digests: list[Any] = [None] * n_ranks
    dist.all_gather_object(digests, hashlib.sha256(repr(facts).encode()).hexdigest(), group=process_group)
    if len(set(digests)) == 1:
        return None
    every: list[Any] = [None] * n_ranks
    dist.all_gather_object(every, dict(facts), group=process_group)
    for rank, other in enumerate(every):
        for name in {**every[0], **other}:
            one, two = _short(every[0].get(name)), _short(other.get(name))
            if every[0].get(name) != other.get(name):
                names = range(n_ranks) if process_group is None else dist.get_process_group_ranks(process_group)
                return f"{name} is {one} in process {names[0]} and {two} in process {names[rank]}"
    return None  # alike, but not written alike


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


class Agreement:
    """Whether the ranks of an optimizer were found to be about to do the same."""

    def __init__(self) -> None:
        self._found = False

    def check(
        self,
        groups: Sequence[dict[str, Any]],
        settings: Callable[[], Mapping[str, Any]],
        ranks: Callable[[], Sequence[Any]],
    ) -> None:
        """Raise ValueError on every rank unless they agree; looked at once, before the first gradients are sent.

        Args:
            groups: the parameter groups of this rank.
            settings: gives those of its optimizer.
            ranks: gives the process groups that have to agree.
        """
        if self._found:
            return
        facts = dict(settings())
        for g, group in enumerate(groups):
            facts[f"the number of parameters of group {g}"] = len(group["params"])
            for i, p in enumerate(group["params"]):
                placed = getattr(p, "placements", "whole")
                facts[f"parameter {i} of group {g}"] = (tuple(p.shape), str(p.dtype), p.requires_grad, repr(placed))
            values = {
                name: value for name, value in group.items() if isinstance(value, bool | int | float | str | tuple)
            }
            facts |= {f"{name} of group {g}": repr(value) for name, value in values.items()}
        for process_group in ranks():
            with others_answer():
                difference = first_difference(facts, process_group)
            if difference is not None:
                raise ValueError(
                    f"backward: the processes do not agree: {difference}. Build the same model and optimizer in all of "
                    "them."
                )
        self._found = True


def relative_weight(weight: float, process_group: "dist.ProcessGroup", device: torch.device) -> Tensor:
    """The weight of this rank over the mean weight of the ranks, 0-d float32: by which to multiply a loss."""
    weights = torch.tensor(float(weight), dtype=torch.float32, device=device)
    mean = weights.clone()
    with others_answer():
        dist.all_reduce(mean, group=process_group)
    mean /= dist.get_world_size(process_group)
    return weights / torch.where(mean > 0, mean, 1.0)


def check_weight(weight: float | None) -> None:
    """Raise TypeError or ValueError unless it is None or a finite number of at least 0."""
    if weight is None:
        return
    if isinstance(weight, bool) or not isinstance(weight, (int, float)):
        raise TypeError(f"weight: expected a number or None, got {type(weight).__name__}. Give the size of the batch.")
    if not 0 <= weight < math.inf:
        raise ValueError(f"weight: expected a finite number of at least 0, got {weight}. Give the size of the batch.")


def mean_over_ranks(
    params: Sequence[Tensor],
    gradients: Sequence[Sequence[Tensor | None]],
    process_group: "dist.ProcessGroup",
    weight: float | None,
) -> list[list[Tensor]]:
    """Σ weight·gradient / Σ weight over the ranks, in one collective for each device and dtype.

    Args:
        params: the parameters, the same on every rank.
        gradients: lists of gradients of theirs; None counts as zero.
        process_group: the ranks.
        weight: of this rank; None for 1.

    Returns:
        As `gradients`, in new memory, nothing missing: whether another rank has a gradient is not known here.
    """
    own = 1.0 if weight is None else float(weight)
    means: list[list[Any]] = [[None] * len(params) for _ in gradients]
    for kind in dict.fromkeys((p.device, p.dtype) for p in params):
        places = [(k, i) for k in range(len(gradients)) for i, p in enumerate(params) if (p.device, p.dtype) == kind]
        parts = [torch.zeros_like(params[i]) if (g := gradients[k][i]) is None else g.detach() for k, i in places]
        # in float32 at least: the sizes of many batches add up
        wide = torch.promote_types(kind[1], torch.float32)
        flat = torch.cat([*(part.flatten().to(wide) for part in parts), torch.ones(1, dtype=wide, device=kind[0])])
        flat *= own
        with others_answer():
            dist.all_reduce(flat, group=process_group)
        total = flat[-1:].clone()
        flat /= torch.where(total > 0, total, 1.0)
        sizes = [part.numel() for part in parts]
        for (k, i), part, mean in zip(places, parts, flat[:-1].split(sizes), strict=True):
            means[k][i] = mean.view(part.shape).to(kind[1])
    return means
