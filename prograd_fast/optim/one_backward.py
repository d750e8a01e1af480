"""The gradients of two losses, with one pass through what is expensive and takes both cotangents at once."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from prograd_fast.ops.cotangent_batches import Meeting, TakesCotangentBatches
from prograd_fast.ops.losses import first_gradient
from prograd_fast.ops.registry import SHORTCUTS

Gradients = tuple[Tensor | None, ...]


def gradients_of_both(
    task: Tensor, general: Tensor | None, params: Sequence[Tensor], *, retain_graph: bool, create_graph: bool
) -> tuple[Gradients, Gradients | None]:
    """The gradients that `torch.autograd.grad` gives for each loss, None for parameters that it does not reach.

    There are two backwards, and all hooks on the way to the parameters run once in each. In a node that is
    `TakesCotangentBatches`, such as the packed text tower, the backwards meet and go through together: that of the
    general loss starts when that of the task loss comes to the node, and ends before the other goes on. So hooks behind
    the node see the general loss first. They meet in one node; of further ones each has a pass of its own.

    Args:
        task: one element.
        general: one element, or None.
        params: the leaves.
        retain_graph: keep the graphs; otherwise what they have saved is freed, as by `loss.backward()`.
        create_graph: make the gradients differentiable, and keep the graphs; then the backwards do not meet.

    Returns:
        The task gradients; the general gradients, or None without a general loss.

    Raises:
        RuntimeError: a reentrant checkpoint is in a graph.
    """
    if torch.compiler.is_compiling():  # which has no nodes to meet in, and does not free a graph twice
        first = torch.autograd.grad(task, params, retain_graph=True, create_graph=create_graph, allow_unused=True)
        if general is None:
            return first, None
        return first, torch.autograd.grad(general, params, create_graph=create_graph, allow_unused=True)
    losses = {"task": task} if general is None else {"task": task, "general": general}
    graphs = [nodes_of(loss) for loss in losses.values()]
    kinds = [{kind.__name__ for kind in set(map(type, graph))} for graph in graphs]
    for name, kind in zip(losses, kinds, strict=True):
        refuse_reentrant_checkpoints(name, kind)
    keep = retain_graph or create_graph

    def gradients(loss: Tensor, again: bool) -> Gradients:
        first = None if keep else first_gradient(loss)
        return torch.autograd.grad(
            loss, params, first, retain_graph=again, create_graph=create_graph, allow_unused=True
        )

    if general is None:
        a, b = gradients(task, keep), None
    else:
        shared = set.intersection(*graphs)
        needed_twice = any(not hasattr(node, "variable") for node in shared)  # more than leaves
        apart = create_graph or any(_HOOKED_MODULE in kind for kind in kinds)
        nodes = [] if apart else [node for node in shared if _takes_batches(node)]
        meeting = Meeting(lambda: gradients(general, True))
        try:
            for node in nodes:
                node.meeting = meeting
            a = gradients(task, keep or needed_twice)
        finally:
            for node in nodes:
                node.meeting = None
        b = gradients(general, keep) if meeting.second is None else meeting.second
    if not keep:
        release_graphs(losses.values())
    return a, b


# A module with full backward hooks stands between two nodes of this kind. It keeps one gradient, from the node at its
# output to the one at its input, and so cannot be in the middle of two backwards.
_HOOKED_MODULE = "BackwardHookFunctionBackward"


def nodes_of(loss: Tensor) -> set[Any]:
    """The nodes of a loss's graph.

    In Python, 0.4 µs each: 2 % of two backwards of a transformer of 12 layers that is only 64 wide, for 64 tokens.
    """
    waiting: list[Any] = [] if loss.grad_fn is None else [loss.grad_fn]
    seen = set(waiting)
    for node in waiting:
        for to, _ in node.next_functions:
            if to is not None and to not in seen:
                seen.add(to)
                waiting.append(to)
    return seen


def release_graphs(losses: Iterable[Tensor]) -> None:
    """Free what the graphs of losses have saved, as `loss.backward()` does.

    Without the extension, where the graphs share a part, something is kept until the losses go: what the task loss
    alone reaches, and both graphs after a meeting.
    """
    if "release_graph" in SHORTCUTS:
        SHORTCUTS["release_graph"](list(losses))


def _takes_batches(node: Any) -> bool:
    return issubclass(getattr(node, "_forward_cls", object), TakesCotangentBatches)


def refuse_reentrant_checkpoints(loss: str, kinds: set[str]) -> None:
    """RuntimeError: their backward calls `loss.backward()` inside, which `torch.autograd.grad` skips or refuses."""
    for kind in kinds:
        if "CheckpointFunction" in kind:  # of torch, DeepSpeed, Megatron, fairscale
            raise RuntimeError(
                f"backward: expected no reentrant checkpoint in the graph of the {loss} loss, found {kind}: parameters "
                "inside it would get no gradient. Pass use_reentrant=False to torch.utils.checkpoint.checkpoint."
            )
