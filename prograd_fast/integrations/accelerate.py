"""accelerate: the backward of two losses, with accelerate's own accumulation and gradient scaler."""

from contextlib import nullcontext
from typing import Any

import accelerate
from torch import Tensor

from prograd_fast.optim.two_gradients import TwoGradients


def backward(
    accelerator: accelerate.Accelerator, optimizer: Any, task: Tensor, general: Tensor | None = None, **options: Any
) -> None:
    """Do for two losses what `accelerator.backward(loss)` does for one.

    Both are divided by `accelerator.gradient_accumulation_steps` and multiplied by the scale of its gradient scaler.
    Where accelerate only accumulates (`accelerator.accumulate(model)`, all but the last micro-batch) the gradients add
    up, and the sum is projected at the last one.

    Args:
        accelerator: the accelerator that prepared `optimizer`.
        optimizer: what `accelerator.prepare` returned for one of this library's optimizers, or that optimizer itself.
        task: the loss to minimise, one element.
        general: the loss that must not be worked against, one element; None for rules on one gradient.
        **options: of `TwoGradients.backward`: `retain_graph`, `create_graph`, `weight`.

    Raises:
        TypeError: the optimizer is none of this library's.
        Others: as the optimizer's `backward`.
    """
    opt = getattr(optimizer, "optimizer", None)
    opt = opt if isinstance(opt, TwoGradients) else optimizer  # a `ProGrad` has an attribute of that name, too
    if not isinstance(opt, TwoGradients):
        raise TypeError(
            f"optimizer: expected a ProGradAdamW, ProGradSGD or ProGrad, or what accelerator.prepare made of it, got "
            f"{type(opt).__name__}. Put it into prograd_fast.ProGrad(...) before accelerator.prepare."
        )
    n = accelerator.gradient_accumulation_steps
    with nullcontext() if accelerator.sync_gradients else opt.accumulate():
        opt.backward(task / n, None if general is None else general / n, scaler=accelerator.scaler, **options)
