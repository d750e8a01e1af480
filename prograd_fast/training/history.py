"""The figures of each training step."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class History:
    """The figures of each step, measured before its update.

    Attributes:
        task_loss: The loss that is minimised.
        general_loss: The loss that must not be worked against; NaN for a method that has none.
        cosine: Between the two gradients; NaN where either is zero or missing.
        completed: Whether the loss stayed finite. If not, the lists end before the first step where it was not.
        terms: The summands of the task loss by name; NaN at steps of a stage that lacks one.
        accuracy: Share of the batch whose largest logit is its label's; NaN where the learner does not count it.
        validation: Accuracy on the validation pictures after each epoch, where training stops by it.
        replayed: Steps that replayed a CUDA graph, of those that this process took.
        not_replayed: Why steps were not replayed; None where nothing was in the way.
    """

    task_loss: list[float]
    general_loss: list[float]
    cosine: list[float]
    completed: bool
    terms: dict[str, list[float]] = field(default_factory=dict)
    accuracy: list[float] = field(default_factory=list)
    validation: list[float] = field(default_factory=list)
    replayed: int = 0
    not_replayed: str | None = None

    @property
    def conflict(self) -> list[bool]:
        """Whether the two gradients conflicted: cosine < 0."""
        return [cosine < 0 for cosine in self.cosine]

    @property
    def conflict_rate(self) -> float:
        """Share of the steps after the first with a conflict; NaN without such steps, or without a general loss.

        At the first step the student is the teacher, unless zero rows precede its words: the general gradient is zero
        but for rounding, and says nothing.
        """
        later = [] if all(map(math.isnan, self.general_loss)) else self.conflict[1:]
        return sum(later) / len(later) if later else float("nan")


class Measurements:
    """Values of each step, on their device until they are read: a list of rows, whose columns have names."""

    def __init__(self, columns: Sequence[str] = (), rows: Tensor | None = None) -> None:
        self.columns = list(columns)
        self._rows = [] if rows is None else list(rows)

    def __len__(self) -> int:
        return len(self._rows)

    def row(self, values: dict[str, Tensor]) -> Tensor:
        """The row of a step; a name that was not there before becomes a column, NaN for the steps until then."""
        self.columns += [name for name in values if name not in self.columns]
        first = next(iter(values.values()))
        missing = first.new_full((), torch.nan)
        return torch.stack([values.get(name, missing).detach().float() for name in self.columns])

    def add(self, row: Tensor) -> None:
        """Add a step by its row, which is kept as it is."""
        self._rows.append(row)

    def since(self, step: int) -> Tensor:
        """(S - step, columns) float32 on the CPU; waits for the device."""
        n = len(self.columns)
        rows = [F.pad(row, (0, n - len(row)), value=torch.nan) for row in self._rows[step:]]
        return torch.stack(rows).cpu() if rows else torch.empty(0, n)

    def history(self, completed: bool, validation: list[float]) -> History:
        """All of it, up to the first step whose task loss is not finite."""
        values = {name: column.tolist() for name, column in zip(self.columns, self.since(0).T, strict=True)}
        task = values.pop("task")
        end = next((i for i, loss in enumerate(task) if not abs(loss) < float("inf")), len(task))
        general, cosine, accuracy = (
            values.pop(name, [math.nan] * len(task))[:end] for name in ("general", "cosine", "accuracy")
        )
        terms = {name: column[:end] for name, column in values.items()}
        return History(task[:end], general, cosine, completed, terms, accuracy, validation)
