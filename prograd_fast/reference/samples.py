"""Predictions averaged over samples of the prompt: log-mean-exp of log-softmax, for variational prompt learning."""

import math

from torch import Tensor

from prograd_fast.reference.losses import Reduction, accumulation_dtype, reduced


def sampled_log_probs(logits: Tensor) -> Tensor:
    """Log of the mean of the samples' probabilities: logsumexp_s log softmax(z_s) - log S.

    Source: Derakhshani et al., Bayesian Prompt Learning (arXiv:2210.02390); `saic-fi/Bayesian-Prompt-Learning`,
    trainers/vpt.py.

    Args:
        logits: z, (S, B, C), one matrix for each sample; any float dtype.

    Returns:
        (B, C) in the accumulation dtype.
    """
    z = logits.to(accumulation_dtype(logits))
    return z.log_softmax(dim=2).logsumexp(dim=0) - math.log(z.shape[0])


def sampled_cross_entropy(logits: Tensor, labels: Tensor, reduction: Reduction = "mean") -> Tensor:
    """Cross-entropy of the mean prediction: -[logsumexp_s log softmax(z_s)[y] - log S] for each row.

    With one sample it is the cross-entropy. Source: as `sampled_log_probs`.

    Args:
        logits: z, (S, B, C).
        labels: y, (B,) int64, each in 0 ... C - 1.
        reduction: "none", "mean" or "sum".

    Returns:
        0-d, or (B,) with "none", in the accumulation dtype.
    """
    at_label = _log_probs_of_labels(logits, labels)
    return reduced(math.log(logits.shape[0]) - at_label.logsumexp(dim=0), None, reduction)


def sampled_cross_entropy_cotangents(logits: Tensor, labels: Tensor, reduction: Reduction = "mean") -> Tensor:
    """The gradient of `sampled_cross_entropy` in the logits, in closed form.

        d loss / dz_s = r_s (softmax(z_s) - onehot(y)),  r_s = softmax over s of log softmax(z_s)[y];  over B for "mean"

    Samples that all exclude the label (-inf) have equal shares.

    Args:
        logits: z, (S, B, C).
        labels: y, (B,).
        reduction: "none", "mean" or "sum".

    Returns:
        (S, B, C) in the accumulation dtype.
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
