"""The gradients of two losses, with one pass through what is expensive and takes both cotangents at once."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from prograd_fast.ops.cotangent_batches import TakesCotangentBatches

Gradients = tuple[Tensor | None, ...]


def gradients_of_both(
    task: Tensor, general: Tensor | None, params: Sequence[Tensor], *, retain_graph: bool, create_graph: bool
) -> tuple[Gradients, Gradients | None]:
    """The gradients that `torch.autograd.grad` gives for each loss, None for parameters that it does not reach.

    Two backwards go through the whole graph, unless nodes in it take batches of cotangents: functions that are
    `TakesCotangentBatches`, such as the packed text tower. Then two go from the losses to such a node, one goes
    through it with both cotangents under vmap, and two go from there to the parameters. Nothing is mixed that autograd
    keeps apart: what is infinite about one loss does not touch the gradient of the other.

    Args:
        task: one element.
        general: one element.
        params: the leaves.
        retain_graph: keep the graph.
        create_graph: make the gradients differentiable; then there are two backwards.
    """
    if general is None:
        a = torch.autograd.grad(task, params, retain_graph=retain_graph, create_graph=create_graph, allow_unused=True)
        return a, None
    graph = None if create_graph else _Cut.of(task, general, params)
    if graph is None:
        a = torch.autograd.grad(task, params, retain_graph=True, create_graph=create_graph, allow_unused=True)
        retain_graph = retain_graph or create_graph
        b = torch.autograd.grad(
            general, params, retain_graph=retain_graph, create_graph=create_graph, allow_unused=True
        )
        return a, b
    n = len(graph.nodes)
    to: list[Any] = [*graph.nodes, *graph.direct]  # Any: torch's annotation knows no mixture of edges and tensors
    above: list[Gradients] = [
        torch.autograd.grad(loss, to, retain_graph=retain, allow_unused=True)
        for loss, retain in ((task, True), (general, retain_graph))
    ]
    behind = _through(graph.nodes, above[0][:n], above[1][:n], retain_graph)
    results: list[Gradients] = []
    for one, edges, retain in zip(above, behind, (True, retain_graph), strict=True):
        found: dict[Tensor, Tensor | None] = dict(zip(graph.direct, one[n:], strict=True))
        if edges:
            outputs, cotangents = list(edges), list(edges.values())
            below = torch.autograd.grad(outputs, graph.behind, cotangents, retain_graph=retain, allow_unused=True)
            found |= dict(zip(graph.behind, below, strict=True))
        results.append(tuple(found.get(p) for p in params))
    return results[0], results[1]


def _through(
    nodes: Sequence[GradientEdge], task: Gradients, general: Gradients, retain_graph: bool
) -> list[dict[GradientEdge, Tensor]]:
    """For each loss the gradients at the inputs of the nodes, from those at their outputs."""
    found: list[dict[GradientEdge, Tensor]] = [{}, {}]
    for node, *cotangents in zip(nodes, task, general, strict=True):
        present = [i for i in range(2) if cotangents[i] is not None]
        if not present:
            continue
        inputs = [GradientEdge(to, nr) for to, nr in node.node.next_functions if to is not None]

        def once(cotangent: Tensor, node: GradientEdge = node, inputs: list[GradientEdge] = inputs) -> Any:
            return torch.autograd.grad([node], inputs, [cotangent], retain_graph=retain_graph)

        batch = torch.stack([c for c in cotangents if c is not None])
        for edge, gradients in zip(inputs, torch.func.vmap(once)(batch), strict=True):
            for i, gradient in zip(present, gradients, strict=True):
                found[i][edge] = found[i][edge] + gradient if edge in found[i] else gradient
    return found


class _Cut:
    """A graph cut at the nodes that take batches of cotangents.

    Attributes:
        nodes: their outputs.
        direct: parameters that the losses reach without such a node.
        behind: parameters that they reach through one.
    """

    def __init__(self, nodes: list[GradientEdge], direct: list[Tensor], behind: list[Tensor]) -> None:
        self.nodes, self.direct, self.behind = nodes, direct, behind

    @classmethod
    def of(cls, task: Tensor, general: Tensor, params: Sequence[Tensor]) -> "_Cut | None":
        """Cut the graph; None if it has no such node, or the cut does not separate the parameters."""
        above, nodes = _reach([task.grad_fn, general.grad_fn])
        if not nodes:
            return None
        below, nested = _reach([to for node in nodes for to, _ in node.next_functions])
        leaves = [{id(one.variable) for one in part if hasattr(one, "variable")} for part in (above, below)]
        if nested or leaves[0] & leaves[1]:
            return None
        direct, behind = ([p for p in params if id(p) in part] for part in leaves)
        return cls([GradientEdge(node, 0) for node in nodes], direct, behind)


def _reach(start: Sequence[Any]) -> tuple[set[Any], list[Any]]:
    """The nodes on the way to the leaves, and those that take batches; nodes behind the latter are not visited."""
    seen, batched, waiting = set(), [], [node for node in start if node is not None]
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        if issubclass(getattr(node, "_forward_cls", object), TakesCotangentBatches):
            batched.append(node)
        else:
            waiting += [to for to, _ in node.next_functions if to is not None]
    return seen, batched
