"""Hugging Face's Trainer with two losses."""

from typing import Any

import transformers
from torch import Tensor, nn

from prograd_fast.integrations.accelerate import backward


class ProGradTrainer(transformers.Trainer):
    """A `transformers.Trainer` whose training step projects the gradient of a task loss by that of a general loss.

    Write `compute_losses`, and give it one of this library's optimizers, either as `optimizers=(opt, None)` or, with
    Trainer's own groups for weight decay, as `optimizer_cls_and_kwargs=(ProGradAdamW, {"lr": 1e-3})`. Clipping,
    accumulation (the sum of the micro-batches is projected), precision, schedules, checkpoints and evaluation are
    Trainer's; it evaluates and logs the task loss.
    """

    def compute_losses(self, model: nn.Module, inputs: dict[str, Any]) -> tuple[Tensor, Tensor | None, Any]:
        """Both losses of a batch, to be written in a subclass.

        Args:
            model: the model, in the mode of training or of evaluation.
            inputs: the batch, as the data collator makes it, on the model's device.

        Returns:
            The task loss and the general loss, means over the batch; and the model's outputs, for evaluation: a
            dictionary such as transformers' models return, or a tuple whose first entry is left out as a loss.
        """
        raise NotImplementedError(
            f"{type(self).__name__}: write compute_losses(model, inputs), which returns both losses"
        )

    def compute_loss(
        self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The task loss, as Trainer asks for it in evaluation."""
        task, _general, outputs = self.compute_losses(model, inputs)
        return (task, outputs) if return_outputs else task

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """Compute both losses of a micro-batch and differentiate them.

        Args:
            model: the model, as accelerate wraps it.
            inputs: the micro-batch.
            num_items_in_batch: not used: both losses are means over micro-batches, which count alike.

        Returns:
            The task loss over the number of micro-batches, 0-d, without graph: Trainer logs the sum.
        """
        model.train()
        inputs = self._prepare_inputs(inputs)
        with self.compute_loss_context_manager():
            task, general, _ = self.compute_losses(model, inputs)
        n = self.current_gradient_accumulation_steps  # fewer at the end of an epoch
        task, general = task.mean() / n, None if general is None else general.mean() / n  # mean: of several GPUs
        backward(self.accelerator, self.optimizer, task, general)
        return task.detach()
