"""Lightning's automatic optimization with two losses; manual optimization needs no adapter."""

from contextlib import nullcontext
from typing import Any

from torch import Tensor


class TwoLosses:
    """A mixin for a LightningModule: `training_step` returns `self.two_losses(task, general)`.

        class Module(TwoLosses, lightning.LightningModule): ...

    `configure_optimizers` returns one of this library's optimizers. Clipping, precision with its gradient scaler,
    schedules and checkpoints are the Trainer's. With `accumulate_grad_batches` the gradients add up, and the sum is
    projected. It serves `lightning` and `pytorch_lightning`. A mixin must stand before the LightningModule.
    """

    trainer: Any
    optimizers: Any
    _both: tuple[Tensor, Tensor | None] | None = None  # the losses between training_step and backward
    _updates = False  # whether Lightning is about to step, after this batch

    def two_losses(self, task: Tensor, general: Tensor | None) -> Tensor:
        """Keep both losses for the backward.

        Args:
            task: the loss to minimise, one element.
            general: the loss that must not be worked against, one element; None for rules on one gradient.

        Returns:
            `task`, for `training_step` to return.
        """
        self._both = task, general
        return task

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Differentiate both losses, in the place of `loss.backward()`.

        Args:
            loss: the task loss as Lightning has divided and scaled it; both losses are treated so here.
            *args: none are known.
            **kwargs: as for the optimizer's `backward`.

        Raises:
            RuntimeError: `training_step` has not called `two_losses`.
        """
        if self._both is None:
            raise RuntimeError(
                "training_step: expected it to return self.two_losses(task, general), got a loss that did not come "
                "from there."
            )
        (task, general), self._both = self._both, None
        n = self.trainer.accumulate_grad_batches
        opt = self.optimizers()
        with nullcontext() if self._updates else opt.accumulate():
            opt.backward(
                task / n,
                None if general is None else general / n,
                scaler=getattr(self.trainer.precision_plugin, "scaler", None),
                **kwargs,
            )

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step as Lightning does; the backward of this batch, which runs inside, projects the sum."""
        self._updates = True
        try:
            super().optimizer_step(*args, **kwargs)  # type: ignore[misc]
        finally:
            self._updates = False
