"""The edges of a graph, sorted by one of their ends: a sum over a node's edges then has one owner and a fixed order."""

import torch
from torch import Tensor


def sorted_ends(ends: Tensor, n_nodes: int) -> tuple[Tensor, Tensor]:
    """By PyTorch's stable sort; no value is read back.

    Args:
        ends: (E,) int64.
        n_nodes: N.

    Returns:
        order (E,) and starts (N + 1,): node n has the edges order[starts[n] : starts[n + 1]]. Ends outside of 0 ...
        N - 1 are before the first and behind the last.
    """
    ends, order = ends.sort(stable=True)
    return order, torch.searchsorted(ends, torch.arange(n_nodes + 1, device=ends.device))
