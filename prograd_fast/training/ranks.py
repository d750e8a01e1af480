"""Several processes that train one run together, each on its share of every batch."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from prograd_fast.optim.ranks import first_difference


@dataclass(frozen=True)
class Ranks:
    """The processes of the default group of `torch.distributed`.

    Attributes:
        rank: this one, from 0.
        size: their number.
    """

    rank: int
    size: int

    @classmethod
    def now(cls) -> "Ranks":
        """The ones that have joined; one alone where nobody has called `init_process_group`."""
        together = dist.is_available() and dist.is_initialized()
        return cls(dist.get_rank(), dist.get_world_size()) if together else cls(0, 1)

    def share(self, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, int | None]:
        """This rank's rows of a batch, every `size`-th, and their number, its weight in the mean; None alone.

        A rank without a row takes the first one with weight 0: an empty batch has no mean.
        """
        if self.size == 1:
            return features, labels, None
        mine = slice(self.rank, None, self.size) if self.rank < len(labels) else slice(1)
        return features[mine], labels[mine], len(labels[mine]) if self.rank < len(labels) else 0

    def mean(self, figures: Tensor, weight: int | None) -> Tensor:
        """Σ weight·figures / Σ weight over the ranks, (F,); NaN where one has NaN."""
        if weight is None:
            return figures
        sums = torch.cat([figures * weight if weight else torch.zeros_like(figures), figures.new_full((1,), weight)])
        dist.all_reduce(sums)
        return sums[:-1] / sums[-1]

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on one of them; waits for all."""
        if self.size == 1:
            return flag
        flags: list[Any] = [None] * self.size
        dist.all_gather_object(flags, flag)
        return any(flags)

    def check_same(self, facts: Any) -> None:
        """ValueError on every rank unless all are about to do the same.

        Args:
            facts: what they are about to do, a dict of what can be compared and pickled.
        """
        if self.size == 1:
            return
        difference = first_difference(facts)
        if difference is not None:
            raise ValueError(
                f"the processes of this run do not agree: {difference}. Give all of them the same command, files and "
                "versions"
            )
