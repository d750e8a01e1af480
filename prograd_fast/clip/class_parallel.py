"""A list of classes that the ranks of a process group share: each encodes its part of the prompts.

    forward    every rank encodes its part; the features are gathered, (C, D) on every rank
    backward   every rank takes the cotangents of its part; the gradients of the context are summed, once

All ranks of the group see the same batch, so that each of them has the cotangents of all classes, and nothing of that
size is sent in the backward. Ranks that see different batches form a group of their own, over which the optimizer
averages (`process_group=`).
"""

import weakref
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

_UNLIKE = 1e-3  # of the magnitude of the cotangents: far more than rounding, far less than another batch


class ClassShare:
    """The parts of a list of C classes, one for each rank of a group, with about as many rows of prompts in each.

    Classes of one part stand side by side. Where there are fewer classes than ranks, some parts are empty; such a rank
    encodes one class of another one's, so that it takes part in everything.

    Args:
        group: the ranks.
        rows: (C,) int64, how much work each class is.
        class_specific: whether each class has a context of its own.

    Attributes:
        n_classes: C.
        encoded: the classes that this rank encodes.
    """

    def __init__(self, group: "dist.ProcessGroup", rows: Tensor, class_specific: bool = False) -> None:
        self.class_specific = class_specific
        self.n_classes = len(rows)
        # a group that is still held when the interpreter ends aborts it (gloo's threads, torch 2.14)
        self._held_by_torch = weakref.ref(group)
        bounds = balanced(rows, dist.get_world_size(group))
        self._counts = [stop - start for start, stop in pairwise(bounds)]
        rank = dist.get_rank(group)
        start = min(bounds[rank], len(rows) - 1)
        self._own = slice(start, start + self._counts[rank])
        self.encoded = slice(start, start + max(self._counts[rank], 1))
        self._compared = False

    def gather(self, features: Tensor) -> Tensor:
        """The features of all classes, (G, C, D), from those that this rank has encoded, without graph."""
        count, most = self._own.stop - self._own.start, max(self._counts)
        mine = features.new_zeros(most, len(features), features.shape[-1])  # collectives want parts of one size
        mine[:count] = features[:, :count].transpose(0, 1)
        every = [torch.empty_like(mine) for _ in self._counts]
        dist.all_gather(every, mine, group=self._group())
        parts = [part[:n] for part, n in zip(every, self._counts, strict=True)]
        return torch.cat(parts).transpose(0, 1).contiguous()

    def own(self, cotangents: Tensor) -> Tensor:
        """The cotangents (K, G, ·, D) of what this rank has encoded, from those of all classes, (K, G, C, D).

        Raises:
            RuntimeError: the ranks have not seen the same batch; looked at in the first backward.
        """
        if not self._compared:
            self._compare(cotangents)
            self._compared = True
        if self._own.start == self._own.stop:
            return torch.zeros_like(cotangents[:, :, self.encoded])
        return cotangents[:, :, self._own]

    def own_context(self, context: Tensor) -> Tensor:
        """The context (G, ...) of what this rank encodes."""
        return context[:, self.encoded] if self.class_specific else context

    def sum(self, gradients: Sequence[Tensor], context: Tensor) -> list[Tensor]:
        """Sums over the ranks, in one collective: the gradients of the whole list.

        Args:
            gradients: (K, ...) each: of the context that `own_context` gave, and any others.
            context: (G, ...), that of all classes.
        """
        first, *others = gradients
        if self.class_specific:
            count = self._own.stop - self._own.start
            of_all = first.new_zeros(len(first), *context.shape)
            of_all[:, :, self._own] = first[:, :, :count]
            first = of_all
        parts = [first, *others]
        wide = torch.promote_types(context.dtype, torch.float32)
        flat = torch.cat([part.flatten().to(wide) for part in parts])
        dist.all_reduce(flat, group=self._group())
        sums = flat.split([part.numel() for part in parts])
        return [total.view(part.shape).to(part.dtype) for total, part in zip(sums, parts, strict=True)]

    def _group(self) -> "dist.ProcessGroup":
        group = self._held_by_torch()
        if group is None:
            raise RuntimeError(
                "class_group: expected a process group that is there, got one that was destroyed. Take "
                "net.with_classes(net.class_names), whose classes this rank encodes alone."
            )
        return group

    def _compare(self, cotangents: Tensor) -> None:
        magnitude = cotangents.abs().sum().reshape(1)
        every = [torch.empty_like(magnitude) for _ in self._counts]
        dist.all_gather(every, magnitude, group=self._group())
        magnitudes = torch.cat(every).tolist()
        if max(magnitudes) - min(magnitudes) > _UNLIKE * max(magnitudes):
            raise RuntimeError(
                "class_group: expected all of its ranks to differentiate the same losses of the same batch, got "
                f"gradients of the class features of magnitudes {', '.join(f'{m:.3g}' for m in magnitudes)}. Ranks "
                "that see different batches belong into the optimizer's process_group."
            )

    def __deepcopy__(self, memo: dict[int, Any]) -> "ClassShare":
        return self  # a process group cannot be copied

    def __reduce__(self) -> Any:
        raise TypeError(
            "class_group: a net that shares its classes cannot be pickled, since a process group cannot. Pickle "
            "net.with_classes(net.class_names), which has the same context."
        )


def balanced(rows: Tensor, n_parts: int) -> list[int]:
    """The bounds of parts that stand side by side, whose sums are near to each other.

    Args:
        rows: (C,) int64, how much each class counts.
        n_parts: how many parts.

    Returns:
        n_parts + 1 numbers from 0 to C; part r is that from the r-th to the next.
    """
    sums = torch.cat([rows.new_zeros(1), rows.cumsum(0)]).double()
    wanted = torch.arange(n_parts + 1) * (sums[-1] / n_parts)
    after = torch.searchsorted(sums, wanted).clamp(1, len(rows))
    nearer = wanted - sums[after - 1] < sums[after] - wanted
    bounds: list[int] = torch.where(nearer, after - 1, after).tolist()
    return [0, *bounds[1:-1], len(rows)]


def check_class_group(group: Any, facts: Mapping[str, Any]) -> None:
    """Refuse what is no process group of this rank's, or ranks that are about to share different lists.

    Args:
        group: `class_group` as it was given.
        facts: what all ranks have to agree on; can be compared and pickled.

    Raises:
        TypeError: it is no process group.
        ValueError: this rank is not in it; on every rank: they do not agree.
    """
    if not isinstance(group, dist.ProcessGroup):
        raise TypeError(
            f"class_group: expected a torch.distributed.ProcessGroup that this rank is in, or None, got "
            f"{type(group).__name__}. torch.distributed.group.WORLD has all ranks, after init_process_group()."
        )
    of_ranks: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(of_ranks, dict(facts), group=group)
    ranks = dist.get_process_group_ranks(group)
    for rank, other in zip(ranks, of_ranks, strict=True):
        for name, value in of_ranks[0].items():
            if other[name] != value:
                raise ValueError(
                    f"class_group: its ranks do not agree: {_difference(name, value, other[name], ranks[0], rank)}. "
                    "Give all of them the same classes, context and model."
                )


def _difference(name: str, first: Any, second: Any, one: int, other: int) -> str:
    if isinstance(first, tuple) and len(first) == len(second):
        at = next(i for i, (a, b) in enumerate(zip(first, second, strict=True)) if a != b)
        return f"{name}[{at}] is {first[at]!r} in rank {one} and {second[at]!r} in rank {other}"
    if isinstance(first, tuple):
        return f"{name} has {len(first)} entries in rank {one} and {len(second)} in rank {other}"
    return f"{name} is {first} in rank {one} and {second} in rank {other}"


@torch.no_grad()
def take_from_first(group: "dist.ProcessGroup", tensor: Tensor) -> None:
    """Overwrite a tensor with that of the first rank of the group: a random start differs from rank to rank."""
    values = tensor.detach().clone(memory_format=torch.contiguous_format)
    dist.broadcast(values, dist.get_global_rank(group, 0), group=group)
    if not torch.equal(values, tensor):  # a graph may stand on a context that several nets share
        tensor.copy_(values)


# For towers that are differentiated by autograd, where the packed one does the same within its own backward.


def summed_in_backward(share: ClassShare, context: Tensor, deep: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The context of what this rank encodes, and the deep prompts; their gradients are summed over the ranks."""
    own_context, *own_deep = _Summed.apply(share, context, *(() if deep is None else (deep,)))
    return own_context, own_deep[0] if own_deep else None


def gathered(share: ClassShare, features: Tensor) -> Tensor:
    """The features (G, C, D) of all classes, differentiable in those that this rank has encoded."""
    result: Tensor = _Gathered.apply(share, features)
    return result


class _Summed(torch.autograd.Function):
    @staticmethod
    def forward(share: ClassShare, context: Tensor, *deep: Tensor) -> tuple[Tensor, ...]:
        own = share.own_context(context)
        return own.view_as(own), *(tensor.view_as(tensor) for tensor in deep)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.share, context, *_ = inputs
        ctx.save_for_backward(context)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        share: ClassShare = ctx.share
        (context,) = ctx.saved_tensors
        sums = _OfBatches.apply(lambda *of_rank: share.sum(of_rank, context), *(g[None] for g in gradients))
        return None, *(total[0] for total in sums)


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(share: ClassShare, features: Tensor) -> Tensor:
        return share.gather(features)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.share, _ = inputs

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        share: ClassShare = ctx.share
        (own,) = _OfBatches.apply(lambda cotangents: [share.own(cotangents)], gradients[0][None])
        return None, own[0]


class _OfBatches(torch.autograd.Function):
    """A function of gradients (K, ...) that talks to other ranks; a batch of them under vmap only makes K larger."""

    @staticmethod
    def forward(function: Callable[..., Sequence[Tensor]], *gradients: Tensor) -> tuple[Tensor, ...]:
        return tuple(function(*gradients))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        pass

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], function: Any, *gradients: Tensor) -> tuple[Any, Any]:
        batches = [
            gradient.expand(info.batch_size, *gradient.shape) if dim is None else gradient.movedim(dim, 0)
            for gradient, dim in zip(gradients, in_dims[1:], strict=True)
        ]
        results = _OfBatches.apply(function, *(batch.flatten(0, 1) for batch in batches))
        return tuple(result.unflatten(0, (info.batch_size, -1)) for result in results), (0,) * len(results)
