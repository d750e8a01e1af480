"""One step of training: the losses of a batch, in parts where it accumulates, and an update along both gradients."""

import torch
from torch import Tensor

from prograd_fast.methods import GradientLearner, Losses
from prograd_fast.optim import NOISE_FLOORS
from prograd_fast.training.options import AS_PUBLISHED, PRECISIONS, TrainOptions


def update(
    learner: GradientLearner,
    batch: tuple[Tensor, Tensor],
    options: TrainOptions = AS_PUBLISHED,
    scaler: torch.amp.GradScaler | None = None,
    weight: float | None = None,
) -> dict[str, Tensor]:
    """One step on (B, D) features and (B,) labels, without waiting for the device.

    Args:
        learner: The method at work.
        batch: Features and labels; of several ranks, this one's.
        options: Precision and accumulation.
        scaler: Of the losses; None scales nothing.
        weight: Of this rank in the mean of the gradients, see `TwoGradients.backward`.

    Returns:
        The figures from before it, 0-d: "task", "general" and "cosine" where there are two losses, "accuracy" on the
        batch, in [0, 1], where the learner counts it, and the terms.
    """
    scaler = scaler or torch.amp.GradScaler(batch[0].device.type, enabled=False)
    optimizer, limit = learner.optimizer, learner.settings.clip_grad_norm
    if options.precision != "fp32":  # the optimizer sees the precision of the gradients, not that of the losses
        optimizer.noise_floor = NOISE_FLOORS[PRECISIONS[options.precision]]
    optimizer.zero_grad()
    values: dict[str, Tensor] = {}
    micro_batches = list(zip(*(tensor.chunk(options.accumulate) for tensor in batch), strict=True))
    for i, (features, labels) in enumerate(micro_batches):
        losses = losses_of(learner, (features, labels), options)
        part = {"task": losses.task, **losses.terms}
        if losses.general is not None:
            part["general"] = losses.general
        if len(micro_batches) > 1:
            share = len(labels) / len(batch[1])
            part = {name: value * share for name, value in part.items()}
        if losses.correct is not None:
            part["accuracy"] = losses.correct / len(batch[1])
        two = part["task"], part.get("general")
        if i + 1 < len(micro_batches):
            with optimizer.accumulate():
                optimizer.backward(*two, scaler=scaler)
        elif limit is None:
            optimizer.backward_and_update(*two, scaler=scaler, weight=weight)
        else:
            optimizer.backward(*two, scaler=scaler, weight=weight)
        for name, value in part.items():
            values[name] = values[name] + value.detach() if name in values else value.detach()
    if limit is not None:
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], limit)
        scaler.step(optimizer)
    scaler.update()
    if "general" in values:
        values["cosine"] = optimizer.cosine[0]
    return values


def losses_of(learner: GradientLearner, batch: tuple[Tensor, Tensor], options: TrainOptions) -> Losses:
    """The losses of (B, D) features and (B,) labels in the precision that is asked for."""
    with torch.autocast(batch[0].device.type, PRECISIONS[options.precision], enabled=options.precision != "fp32"):
        return learner.losses(*batch)
