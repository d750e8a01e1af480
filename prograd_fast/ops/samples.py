"""`sampled_cross_entropy` and `sampled_log_probs`: losses and predictions averaged over samples of the prompt."""

from typing import Any

import torch
from torch import Tensor

from prograd_fast.ops.checks import Arguments, check_reduction
from prograd_fast.ops.gradients import register_losses
from prograd_fast.ops.registry import LIBRARY, define
from prograd_fast.reference import samples as reference
from prograd_fast.reference.losses import REDUCTIONS, Reduction, accumulation_dtype


def _check_logits(logits: Tensor) -> tuple[Arguments, tuple[int, ...]]:
    arguments = Arguments(logits)
    samples, rows, classes = arguments.sizes("logits", logits, "samples, rows, classes")
    if rows and not (samples and classes):
        raise ValueError(f"logits: expected at least one sample and one class, got shape {tuple(logits.shape)}.")
    return arguments, (rows, classes)


# ---- the loss


def _check_loss(call: dict[str, Any]) -> None:
    arguments, (rows, _) = _check_logits(call["logits"])
    arguments.integers("labels", call["labels"], (rows,))
    reduction = check_reduction(call["reduction"])
    arguments.result("losses", call.get("losses"), (rows,) if reduction == "none" else ())
    arguments.result("cotangents", call.get("cotangents"), tuple(call["logits"].shape))


def _sampled_cross_entropy_out(
    logits: Tensor, labels: Tensor, reduction: int, *, losses: Tensor, cotangents: Tensor
) -> None:
    how: Reduction = REDUCTIONS[reduction]  # type: ignore[assignment]
    losses.copy_(reference.sampled_cross_entropy(logits, labels, how))
    cotangents.copy_(reference.sampled_cross_entropy_cotangents(logits, labels, how))


def _empty_losses(logits: Tensor, labels: Tensor, reduction: int) -> tuple[Tensor, Tensor]:
    rows = labels.shape if REDUCTIONS[reduction] == "none" else ()
    return logits.new_empty(rows, dtype=accumulation_dtype(logits)), logits.new_empty(logits.shape)


def _sampled_cross_entropy(logits: Tensor, labels: Tensor, reduction: int) -> tuple[Tensor, Tensor]:
    losses, cotangents = _empty_losses(logits, labels, reduction)
    torch.ops.prograd_fast.sampled_cross_entropy_out(logits, labels, reduction, losses=losses, cotangents=cotangents)
    return losses, cotangents


INPUTS = "Tensor logits, Tensor labels, int reduction"
define(
    f"sampled_cross_entropy_out({INPUTS}, *, Tensor(a!) losses, Tensor(b!) cotangents) -> ()",
    reference=_sampled_cross_entropy_out,
    check=_check_loss,
)
define(
    f"sampled_cross_entropy({INPUTS}) -> (Tensor losses, Tensor cotangents)",
    reference=_sampled_cross_entropy,
    fake=_empty_losses,
    check=_check_loss,
)
register_losses("sampled_cross_entropy", differentiable=0, per_row=True, losses=1)

# ---- the prediction


def _check_log_probs(call: dict[str, Any]) -> None:
    arguments, shape = _check_logits(call["logits"])
    arguments.result("log_probs", call.get("log_probs"), shape)


def _sampled_log_probs_out(logits: Tensor, *, log_probs: Tensor) -> None:
    log_probs.copy_(reference.sampled_log_probs(logits))


def _empty_log_probs(logits: Tensor) -> Tensor:
    return logits.new_empty(logits.shape[1:], dtype=accumulation_dtype(logits))


def _sampled_log_probs(logits: Tensor) -> Tensor:
    log_probs = _empty_log_probs(logits)
    torch.ops.prograd_fast.sampled_log_probs_out(logits, log_probs=log_probs)
    return log_probs


define(
    "sampled_log_probs_out(Tensor logits, *, Tensor(a!) log_probs) -> ()",
    reference=_sampled_log_probs_out,
    check=_check_log_probs,
)
define(
    "sampled_log_probs(Tensor logits) -> Tensor",
    reference=_sampled_log_probs,
    fake=_empty_log_probs,
    check=_check_log_probs,
)


def _keep_logits(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _through_reference(ctx: Any, gradient: Tensor) -> Tensor:
    """In plain PyTorch: training goes through the loss, which has its gradient at hand."""
    (logits,) = ctx.saved_tensors
    log_p = logits.to(gradient.dtype).log_softmax(dim=2)
    by_log_p = log_p.softmax(dim=0) * gradient  # the samples' shares of each class
    return (by_log_p - log_p.exp() * by_log_p.sum(dim=2, keepdim=True)).to(logits.dtype)


def _one_by_one(info: Any, in_dims: tuple[int], logits: Tensor) -> tuple[Tensor, int]:
    return torch.stack([torch.ops.prograd_fast.sampled_log_probs(z) for z in logits.unbind(in_dims[0])]), 0


torch.library.register_autograd(
    "prograd_fast::sampled_log_probs", _through_reference, setup_context=_keep_logits, lib=LIBRARY
)
torch.library.register_vmap("prograd_fast::sampled_log_probs", _one_by_one, lib=LIBRARY)
