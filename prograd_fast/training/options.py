"""How a learner is trained, beside what its method says."""

from dataclasses import asdict, dataclass
from typing import Any

import torch

from prograd_fast.methods.settings import MOST

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class TrainOptions:
    """Precision, accumulation, early stop and augmented views of a training.

    Attributes:
        precision: "fp32"; or "bf16" or "fp16", in which autocast computes the losses. What is trained stays as it is;
            with fp16 the losses are scaled (`torch.amp.GradScaler`).
        accumulate: Parts in which a batch goes through the text tower, one after the other, in as much less memory.
            For losses that are means over the pictures the update is the same.
        patience: Epochs of the last stage without a better accuracy on the validation pictures after which training
            stops; the best state is kept. None: all epochs, the last state, as the papers do.
        views: Augmented views of each picture: None for the pictures as they are, K for K stored views in turn, 0 for
            new ones at every epoch. See `AugmentedFeatures`. A method that takes several crops of each picture before
            any step (`Method.crops`) takes K, or with 0 as many as its authors.
        graph: None: on a GPU, replay steps as one CUDA graph where that is possible (`GraphedStep`); True: and say why
            where it is not; False: never. The numbers are the same.

    Raises:
        ValueError: a setting is out of range.
    """

    precision: str = "fp32"
    accumulate: int = 1
    patience: int | None = None
    views: int | None = None
    graph: bool | None = None

    @property
    def regime(self) -> dict[str, Any]:
        """The options that decide the numbers of a run."""
        return {name: value for name, value in asdict(self).items() if name != "graph"}

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision: expected one of {', '.join(PRECISIONS)}, got {self.precision!r}")
        for name, least in (("accumulate", 1), ("patience", 1), ("views", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name}: expected {least} or more, got {value}")
            if value is not None and value > MOST:
                raise ValueError(f"{name}: expected {MOST} at most, got {value}")


AS_PUBLISHED = TrainOptions()
