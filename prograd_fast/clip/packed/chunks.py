"""Chunks of classes whose activations fit into a given memory."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor

from prograd_fast.clip.packed.weights import TowerWeights

# Numbers per row, in units of d: what a block keeps for the backward, and what a forward and a backward of two
# cotangents need at their height beside that.
KEPT, FORWARD, BACKWARD = 9, 14, 24
_ROWS_WITHOUT_BACKWARD = 4096  # at once: nothing is kept then, and more rows are not faster


@dataclass(frozen=True)
class Chunk:
    """Some classes that stand side by side.

    Attributes:
        classes: which.
        rows: theirs among the suffixes.
        offsets: (their number + 1,) int64, from 0.
    """

    classes: slice
    rows: slice
    offsets: Tensor


def chunks_within(
    max_memory: float | None,
    weights: TowerWeights,
    groups: int,
    n_prefix: int,
    offsets: Tensor,
    bounds: Sequence[int],
    differentiable: bool,
    n_own: int = 0,
) -> tuple[Chunk, ...]:
    """Cut the classes into chunks, each with as many of them as fit.

    Args:
        max_memory: bytes that the activations may take, or None for no limit.
        weights: of the tower.
        groups: number G of contexts.
        n_prefix: number P of rows of the prefix.
        offsets: (C + 1,) int64, of the classes among the suffixes.
        bounds: the same numbers on the host.
        differentiable: whether a backward will come.
        n_own: rows that each class has beside those, where classes part (`Parting`).

    Returns:
        The chunks in order; empty if all classes fit.

    Raises:
        ValueError: `max_memory` is too little for the longest prompt.
    """
    numbers = KEPT * len(weights.blocks) + BACKWARD if differentiable else FORWARD
    row_bytes = groups * weights.width * weights.dtype.itemsize * numbers
    bounds_of_rows = [bound + n_own * i for i, bound in enumerate(bounds)]
    limit = bounds_of_rows[-1] if differentiable else max(_ROWS_WITHOUT_BACKWARD // groups, 1)
    if max_memory is not None:
        limit = min(limit, int(max_memory / row_bytes) - n_prefix)
    if limit >= bounds_of_rows[-1]:
        return ()
    chunks, start = [], 0
    while start < len(bounds) - 1:
        stop = start
        while stop + 1 < len(bounds) and bounds_of_rows[stop + 1] - bounds_of_rows[start] <= limit:
            stop += 1
        if stop == start and max_memory is None:
            stop += 1
        if stop == start:
            longest = max(b - a for a, b in pairwise(bounds_of_rows))
            least = row_bytes * (longest + n_prefix)
            raise ValueError(
                f"max_memory: expected at least {least / 1e6:.3g} MB, which the longest prompt takes, got "
                f"{(max_memory or 0) / 1e6:.3g} MB. Give more, or fewer contexts at once."
            )
        chunk_offsets = offsets[start : stop + 1] - bounds[start]
        chunks.append(Chunk(slice(start, stop), slice(bounds[start], bounds[stop]), chunk_offsets))
        start = stop
    return tuple(chunks)
