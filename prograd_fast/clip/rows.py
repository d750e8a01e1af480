"""Rows of features that lie in several tensors, in memory or mapped from files, and are copied where they are used."""

from collections.abc import Iterator, Mapping, Sequence

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
        taken = self._parts[0].new_empty(len(rows), self._parts[0].shape[1])
        for number in np.unique(part).tolist():
            here = np.flatnonzero(part == number)
            found = self._parts[number][torch.from_numpy(index[here]).to(taken.device)]
            if len(here) == len(rows):
                return found
            taken[torch.from_numpy(here).to(taken.device)] = found
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
    """Rows of D numbers by key, each in one of several tensors."""

    def __init__(self) -> None:
        self._parts: list[Tensor] = []
        self._places: dict[bytes, tuple[int, int]] = {}

    def add(self, keys: Mapping[bytes, int], values: Tensor) -> None:
        """Take up rows of a tensor (n, D), which is not copied: each key with the row's index."""
        self._places |= {key: (len(self._parts), row) for key, row in keys.items()}
        self._parts.append(values)

    def table(self, keys: Sequence[bytes]) -> RowTable:
        """The rows of these keys, at least one, in this order; KeyError for one that is not there."""
        return RowTable(self._parts, np.array([self._places[key] for key in keys], np.int64))

    def __getitem__(self, key: bytes) -> Tensor:
        """The (D,) row."""
        part, row = self._places[key]
        return self._parts[part][row]

    def __iter__(self) -> Iterator[bytes]:
        """The keys."""
        return iter(self._places)

    def __len__(self) -> int:
        """How many keys."""
        return len(self._places)
