"""Rows of features that lie in several tensors, in memory or mapped from files, and are copied where they are used."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import repeat

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class RowTable:
    """N rows of D numbers.

    Args:
        parts: Tensors (n, D) of one dtype and device, at least one.
        places: (N, 2) int64: in which part each row is, and where in it.
    """

    def __init__(self, parts: Sequence[Tensor], places: NDArray[np.int64]) -> None:
        self._parts, self._places = parts, places

    @classmethod
    def of(cls, values: Tensor) -> "RowTable":
        """The rows of one tensor, in their order."""
        return cls([values], np.stack([np.zeros(len(values), np.int64), np.arange(len(values))], 1))

    def __len__(self) -> int:
        """N."""
        return len(self._places)

    def take(self, rows: NDArray[np.int64]) -> Tensor:
        """(len(rows), D): a copy of these rows, in this order. Of what is mapped from a file no other row is read."""
        part, index = self._places[rows].T
        index = torch.from_numpy(np.ascontiguousarray(index)).to(self._parts[0].device)
        numbers = [int(part[0])] if len(part) and (part == part[0]).all() else np.unique(part).tolist()
        if len(numbers) == 1:
            return self._parts[numbers[0]].index_select(0, index)
        taken = self._parts[0].new_empty(len(rows), self._parts[0].shape[1])
        for number in numbers:
            here = torch.from_numpy(np.flatnonzero(part == number)).to(taken.device)
            taken[here] = self._parts[number].index_select(0, index[here])
        return taken

    def to(self, device: torch.device) -> "RowTable":
        """The same rows on a device: the table itself if they are there, else one tensor, filled part by part."""
        if self._parts[0].device == device:
            return self
        values = torch.empty(len(self), self._parts[0].shape[1], dtype=self._parts[0].dtype, device=device)
        for number in range(len(self._parts)):
            here = np.flatnonzero(self._places[:, 0] == number)
            values[torch.from_numpy(here).to(device)] = self.take(here).to(device)
        return RowTable.of(values)


class KeyedRows(Mapping[bytes, Tensor]):
    """Rows of D numbers by key, each in one of several tensors; at first none.

    Args:
        keys: All that may come.
    """

    def __init__(self, keys: Sequence[bytes]) -> None:
        self._keys, self._slots = list(keys), dict(zip(keys, range(len(keys)), strict=True))
        repeated = len(self._slots) < len(keys)
        self._own = self._looked_up(keys) if repeated else np.arange(len(keys))  # of each key, its slot
        self._places = np.full((len(keys), 2), -1, np.int64)  # of each slot: in which part, and where in it
        self._parts: list[Tensor] = []

    def slots(self, keys: Sequence[bytes]) -> NDArray[np.int64]:
        """(len(keys),): where each of these keys is kept; -1 for one that was not announced."""
        # a file has what a run asked for, in its order: then the next run only has to compare two lists
        start = self._slots.get(keys[0], -1) if keys else -1
        if start >= 0 and self._keys[start : start + len(keys)] == keys:
            return self._own[start : start + len(keys)]
        return self._looked_up(keys)

    def _looked_up(self, keys: Sequence[bytes]) -> NDArray[np.int64]:
        # map takes two thirds of a loop's time
        return np.fromiter(map(self._slots.get, keys, repeat(-1)), np.int64, len(keys))

    def add(self, slots: NDArray[np.int64], values: Tensor) -> None:
        """Take up rows of a tensor (n, D), which is not copied; of each row the `slots`, -1 for one that is not."""
        rows = np.flatnonzero(slots >= 0)
        self._places[slots[rows]] = np.stack([np.full_like(rows, len(self._parts)), rows], 1)
        self._parts.append(values)

    def table(self, keys: Sequence[bytes]) -> RowTable:
        """The rows of these keys, all of which are there and at least one, in this order."""
        return RowTable(self._parts, self._places[self.slots(keys)])

    def __getitem__(self, key: bytes) -> Tensor:
        """The (D,) row."""
        part, row = self._places[self._slots[key]].tolist()
        if part < 0:
            raise KeyError(key)
        return self._parts[part][row]

    def __contains__(self, key: object) -> bool:
        """Whether its row is there."""
        slot = self._slots.get(key, -1) if isinstance(key, bytes) else -1
        return slot >= 0 and bool(self._places[slot, 0] >= 0)

    def __iter__(self) -> Iterator[bytes]:
        """The keys whose rows are there."""
        return (key for key in self._slots if key in self)

    def __len__(self) -> int:
        """How many."""
        return sum(1 for _ in self)
