"""Losses and predictions averaged over samples of the prompt, as variational prompt learning has them."""

import math
from typing import Any

import torch
from torch import Tensor

from prograd_fast.ops.checks import (
    Arguments,
    check_devices,
    check_floating,
    check_label_range,
    check_labels,
    check_reduction,
    check_reduction_number,
)
from prograd_fast.ops.common import REDUCTIONS, Reduction, accumulation_dtype, reduced
from prograd_fast.ops.losses import define_loss, goes_through_formula, losses_of
from prograd_fast.ops.registry import LIBRARY, define

# ---- formulas


def sampled_log_probs_formula(logits: Tensor) -> Tensor:
    """Log of the mean of the samples' probabilities: logsumexp_s log softmax(z_s) - log S.

    Source: Derakhshani et al., Bayesian Prompt Learning (arXiv:2210.02390); `saic-fi/Bayesian-Prompt-Learning`,
    trainers/vpt.py. Argument and result are those of `sampled_log_probs`, for any float dtype.
    """
    z = logits.to(accumulation_dtype(logits))
    return z.log_softmax(dim=2).logsumexp(dim=0) - math.log(z.shape[0])


def sampled_cross_entropy_formula(logits: Tensor, labels: Tensor, reduction: Reduction = "mean") -> Tensor:
    """Cross-entropy of the mean prediction: -[logsumexp_s log softmax(z_s)[y] - log S] for each row.

    With one sample it is the cross-entropy. Source: as `sampled_log_probs_formula`. Arguments and result are those of
    `sampled_cross_entropy`.
    """
    at_label = _log_probs_of_labels(logits, labels)
    return reduced(math.log(logits.shape[0]) - at_label.logsumexp(dim=0), None, reduction)


def sampled_cross_entropy_cotangents(logits: Tensor, labels: Tensor, reduction: Reduction = "mean") -> Tensor:
    """The gradient of `sampled_cross_entropy` in the logits, (S, B, C) in the accumulation dtype, in closed form.

        d loss / dz_s = r_s (softmax(z_s) - onehot(y)),  r_s = softmax over s of log softmax(z_s)[y];  over B for "mean"

    Samples that all exclude the label (-inf) have equal shares.
    """
    at_label = _log_probs_of_labels(logits, labels)
    top = at_label.amax(dim=0)
    share = (at_label - top).exp().where(at_label != top, 1.0)
    share = share / share.sum(dim=0)
    residual = logits.to(at_label.dtype).softmax(dim=2)
    residual[:, range(len(labels)), labels] -= 1
    cotangents = share.unsqueeze(2) * residual
    return cotangents / len(labels) if reduction == "mean" else cotangents


def _log_probs_of_labels(logits: Tensor, labels: Tensor) -> Tensor:
    z = logits.to(accumulation_dtype(logits))
    return z.log_softmax(dim=2).gather(2, labels.expand(z.shape[0], -1).unsqueeze(2)).squeeze(2)


# ---- operators
#
# sampled_cross_entropy  logits (S, B, C); losses (), or (B,) for reduction 0 (none); cotangents (S, B, C)
# sampled_log_probs      logits (S, B, C); log_probs (B, C) in the accumulation dtype


def _check_logits(logits: Tensor) -> tuple[Arguments, tuple[int, ...]]:
    arguments = Arguments(logits)
    samples, rows, classes = arguments.sizes("logits", logits, "samples, rows, classes")
    if rows and not (samples and classes):
        raise ValueError(f"logits: expected at least one sample and one class, got shape {tuple(logits.shape)}.")
    return arguments, (rows, classes)


def _check_loss(call: dict[str, Any]) -> None:
    arguments, (rows, _) = _check_logits(call["logits"])
    arguments.integers("labels", call["labels"], (rows,))
    reduction = check_reduction_number(call["reduction"])
    arguments.result("losses", call.get("losses"), (rows,) if reduction == "none" else ())
    arguments.result("cotangents", call.get("cotangents"), tuple(call["logits"].shape))


def _loss_formula(logits: Tensor, labels: Tensor, reduction: int) -> Tensor:
    return sampled_cross_entropy_formula(logits, labels, REDUCTIONS[reduction])


def _loss_kernel(logits: Tensor, labels: Tensor, reduction: int, *, losses: Tensor, cotangents: Tensor) -> None:
    losses.copy_(_loss_formula(logits, labels, reduction))
    cotangents.copy_(sampled_cross_entropy_cotangents(logits, labels, REDUCTIONS[reduction]))


def _loss_empty(logits: Tensor, labels: Tensor, reduction: int) -> tuple[Tensor, ...]:
    rows = labels.shape if REDUCTIONS[reduction] == "none" else ()
    dtype = accumulation_dtype(logits)
    return logits.new_empty(rows, dtype=dtype), logits.new_empty(logits.shape, dtype=dtype)


define_loss(
    "sampled_cross_entropy",
    "Tensor logits, Tensor labels, int reduction",
    ("losses", "cotangents"),
    "Tensor losses, Tensor cotangents",
    kernel=_loss_kernel,
    empty=_loss_empty,
    formula=_loss_formula,
    check=_check_loss,
    differentiable=0,
    per_row=True,
)


def _check_log_probs(call: dict[str, Any]) -> None:
    arguments, shape = _check_logits(call["logits"])
    arguments.result("log_probs", call.get("log_probs"), shape)


def _log_probs_kernel(logits: Tensor, *, log_probs: Tensor) -> None:
    log_probs.copy_(sampled_log_probs_formula(logits))


def _empty_log_probs(logits: Tensor) -> Tensor:
    return logits.new_empty(logits.shape[1:], dtype=accumulation_dtype(logits))


def _sampled_log_probs(logits: Tensor) -> Tensor:
    log_probs = _empty_log_probs(logits)
    torch.ops.prograd_fast.sampled_log_probs_out(logits, log_probs=log_probs)
    return log_probs


define(
    "sampled_log_probs_out(Tensor logits, *, Tensor(a!) log_probs) -> ()",
    reference=_log_probs_kernel,
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


def _log_probs_backward(ctx: Any, gradient: Tensor) -> Tensor:
    """In plain PyTorch: training goes through the loss, which has its gradient at hand."""
    (logits,) = ctx.saved_tensors
    log_p = logits.to(gradient.dtype).log_softmax(dim=2)
    by_log_p = log_p.softmax(dim=0) * gradient  # the samples' shares of each class
    return (by_log_p - log_p.exp() * by_log_p.sum(dim=2, keepdim=True)).to(logits.dtype)


def _log_probs_one_by_one(info: Any, in_dims: tuple[int], logits: Tensor) -> tuple[Tensor, int]:
    return torch.stack([torch.ops.prograd_fast.sampled_log_probs(z) for z in logits.unbind(in_dims[0])]), 0


torch.library.register_autograd(
    "prograd_fast::sampled_log_probs", _log_probs_backward, setup_context=_keep_logits, lib=LIBRARY
)
torch.library.register_vmap("prograd_fast::sampled_log_probs", _log_probs_one_by_one, lib=LIBRARY)


# ---- functions


def sampled_cross_entropy(logits: Tensor, labels: Tensor, reduction: Reduction = "mean") -> Tensor:
    """Cross-entropy of the mean prediction of S samples, and its gradient, in one operator.

    -[logsumexp_s log softmax(z_s)[y] - log S] for each row. With one sample it is the cross-entropy. Differentiable;
    the kernels have the first derivative, further ones go through the formula. Source: arXiv:2210.02390; formula:
    `prograd_fast.reference.sampled_cross_entropy`.

    Args:
        logits: z, (S, B, C), one matrix for each sample; float64, float32, bfloat16 or float16. -inf excludes a class.
        labels: y, (B,) integers in 0 ... C - 1.
        reduction: "mean" (default), "sum" or "none", over the rows.

    Returns:
        0-d, or (B,) with "none"; float32 or wider.

    Raises:
        TypeError: logits are not floating point, or labels are not integers.
        ValueError: shapes or devices do not fit, the reduction is unknown, or (on a CPU) a label is out of range.
    """
    _check_samples(logits)
    check_labels(labels, logits.shape[1])
    check_reduction(reduction)
    check_devices(logits=logits, labels=labels)
    try:
        losses, *_ = losses_of("sampled_cross_entropy", logits, labels.long(), REDUCTIONS.index(reduction))
    except (ValueError, IndexError, RuntimeError) as error:
        check_label_range(error, labels, logits, 2)
        raise
    return losses


def sampled_log_probs(logits: Tensor) -> Tensor:
    """Log of the mean of the samples' probabilities, logsumexp_s log softmax(z_s) - log S: the prediction.

    Differentiable any number of times, in plain PyTorch; for training, `sampled_cross_entropy` has its gradient at
    hand. Source: as there.

    Args:
        logits: z, (S, B, C).

    Returns:
        (B, C), float32 or wider.

    Raises:
        TypeError: logits are not floating point.
        ValueError: logits do not have three dimensions, or there is no sample.
    """
    _check_samples(logits)
    if goes_through_formula():
        return sampled_log_probs_formula(logits)
    return torch.ops.prograd_fast.sampled_log_probs(logits)


def _check_samples(logits: Tensor) -> None:
    check_floating("logits", logits)
    if logits.dim() != 3 or logits.shape[0] == 0:
        raise ValueError(f"logits: expected shape (samples, batch, classes), got {tuple(logits.shape)}.")
