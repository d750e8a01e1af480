"""The mean of gradients over the ranks of a process group."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def check_ranks(process_group: "dist.ProcessGroup | None") -> None:
    """Raise RuntimeError where there are several ranks and nobody has said what they are to each other."""
    if process_group is None and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        raise RuntimeError(
            f"backward: {dist.get_world_size()} ranks run, and each would step on its own gradients: backward() goes "
            "past the reduction of DistributedDataParallel. Build the optimizer with "
            "process_group=torch.distributed.group.WORLD, which averages over the ranks; where each rank trains a "
            "model of its own, with a group of one rank (torch.distributed.new_subgroups(1)[0])."
        )


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
        dist.all_reduce(flat, group=process_group)
        total = flat[-1:].clone()
        flat /= torch.where(total > 0, total, 1.0)
        sizes = [part.numel() for part in parts]
        for (k, i), part, mean in zip(places, parts, flat[:-1].split(sizes), strict=True):
            means[k][i] = mean.view(part.shape).to(kind[1])
    return means
