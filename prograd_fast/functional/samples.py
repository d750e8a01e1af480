"""Losses and predictions averaged over samples of the prompt, as variational prompt learning has them."""

import torch
from torch import Tensor

from prograd_fast.checks import check_label_range, check_sampled_cross_entropy, check_samples
from prograd_fast.reference.losses import REDUCTIONS, Reduction


def sampled_cross_entropy(logits: Tensor, labels: Tensor, reduction: Reduction = "mean") -> Tensor:
    """Cross-entropy of the mean prediction of S samples, and its gradient, in one operator.

    -[logsumexp_s log softmax(z_s)[y] - log S] for each row. With one sample it is the cross-entropy. Differentiable
    once. Source: arXiv:2210.02390; formula: `prograd_fast.reference.sampled_cross_entropy`.

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
    check_sampled_cross_entropy(logits, labels, reduction)
    try:
        losses, _ = torch.ops.prograd_fast.sampled_cross_entropy(logits, labels.long(), REDUCTIONS.index(reduction))
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
    check_samples(logits)
    return torch.ops.prograd_fast.sampled_log_probs(logits)
