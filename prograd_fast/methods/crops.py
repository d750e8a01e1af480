"""Random crops of each picture that a method without steps takes together."""

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Crops:
    """How a method takes several random crops and flips of each picture, see `Method.crops`.

    Attributes:
        averaged: Whether the unit row of their mean stands for a picture; else each crop is a row of its own.
        number: How many crops, where that is not said otherwise.
        least: The least part of a picture's area that a crop keeps.
    """

    averaged: bool
    number: int = 10
    least: float = 0.5

    def merged(self, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The rows that are learned from.

        Args:
            features: (A, N, D) unit rows of A crops of N pictures.
            labels: (N,) int64.

        Returns:
            Unit rows and their labels: of N pictures if crops are averaged, else of A · N, crop by crop.
        """
        if self.averaged:
            return F.normalize(features.mean(0), dim=-1), labels
        return features.flatten(0, 1), labels.repeat(len(features))
