"""Retrieve diverse pseudo-captions and train a captioner on them, after REST.

Bulat, Sanchez, Martinez, Tzimiropoulos, "REST: REtrieve & Self-Train for generative action recognition"
(arXiv:2209.15000): a generative vision-language model learns from captions that CLIP retrieves for videos without
labels. The authors have published no code; number and diversity of captions, losses and schedule could not be read.
This is our own reading of it, tested against formulas alone. The general loss is ours, too: the likelihood under the
original captioner, so that a projection (`ProGradAdamW`) keeps what the retrieved captions do not know.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from prograd_fast.optim import ProGradAdamW

Captioner = Callable[[Tensor, Tensor], Tensor]  # (B, ...) clips, (B, L) tokens -> (B, L, V), token i from those before


@torch.no_grad()
def diverse_captions(clip_features: Tensor, caption_features: Tensor, count: int, mu: float = 0.5) -> Tensor:
    """For each clip the captions nearest to it that are not too near to each other, greedily.

    The next one is the argmax, over the captions not chosen yet, of sim(caption, clip) - μ·max sim(caption, chosen);
    the rule is ours. With μ = 0 these are the `count` nearest.

    Args:
        clip_features: (N, D) unit rows, cached: for instance the mean of a frozen CLIP model's features of frames.
        caption_features: (M, D) unit rows of the same model's text tower.
        count: K, of captions of each clip, at most M.
        mu: μ (default: 0.5).

    Returns:
        (N, K) int64, indices of captions in the order in which they were chosen.

    Raises:
        ValueError: K is not in 1 ... M, μ is negative, or the widths differ.
    """
    if clip_features.shape[1:] != caption_features.shape[1:] or not 1 <= count <= len(caption_features) or mu < 0:
        raise ValueError(
            f"expected features of one width, 1 to {len(caption_features)} captions and mu of 0 or more, got "
            f"{tuple(clip_features.shape)} and {tuple(caption_features.shape)}, {count} and {mu}."
        )
    near = clip_features @ caption_features.T
    chosen = near.argmax(1)[:, None]
    free = torch.ones_like(near, dtype=torch.bool).scatter_(1, chosen, False)
    alike = caption_features[chosen[:, 0]] @ caption_features.T  # (N, M): the largest similarity to a chosen one
    while chosen.shape[1] < count:
        best = (near - mu * alike).masked_fill(~free, -torch.inf).argmax(1, keepdim=True)
        chosen = torch.cat([chosen, best], 1)
        free.scatter_(1, best, False)
        alike = torch.maximum(alike, caption_features[best[:, 0]] @ caption_features.T)
    return chosen


def _check_tokens(logits: Tensor, tokens: Tensor) -> None:
    if logits.dim() != 3 or logits.shape[:2] != tokens.shape:
        raise ValueError(
            f"expected logits (B, L, V) of tokens (B, L), got {tuple(logits.shape)}, {tuple(tokens.shape)}."
        )


def caption_loss(logits: Tensor, tokens: Tensor, pad: int = -1) -> Tensor:
    """The negative log-likelihood of captions, mean over all tokens that are no padding; 0-d.

    Args:
        logits: (B, L, V).
        tokens: (B, L) int64.
        pad: the token that does not count (default: -1).

    Raises:
        ValueError: shapes do not fit.
    """
    _check_tokens(logits, tokens)
    return F.cross_entropy(logits.flatten(0, 1), tokens.flatten(), ignore_index=pad)


def original_loss(logits: Tensor, original: Tensor, tokens: Tensor, pad: int = -1) -> Tensor:
    """The cross-entropy from the original captioner's next tokens to the student's: -Σ_v p(v)·log q(v); 0-d.

    It is the expected negative log-likelihood of what the original captioner would say after each prefix, least where
    both say the same.

    Args:
        logits: (B, L, V), the student's.
        original: (B, L, V), the original captioner's; no gradient goes there.
        tokens: (B, L), the prefixes; positions with `pad` do not count.
        pad: see `caption_loss`.

    Raises:
        ValueError: shapes do not fit.
    """
    _check_tokens(logits, tokens)
    _check_tokens(original, tokens)
    counted = tokens != pad
    said = original.detach()[counted].softmax(-1)
    return -(said * logits[counted].log_softmax(-1)).sum(-1).mean()


def self_train(
    student: Captioner,
    original: Captioner,
    optimizer: ProGradAdamW,
    clips: Tensor,
    captions: Tensor,
    steps: int,
    g: torch.Generator,
    *,
    project: bool = True,
    batch: int = 32,
    pad: int = -1,
) -> list[float]:
    """Train on one of each clip's pseudo-captions at a time, drawn at random.

    Args:
        student: the captioner under training.
        original: the captioner as it was, frozen.
        optimizer: of the student's parameters.
        clips: (N, ...).
        captions: (N, K, L) int64 tokens, those of the retrieved captions.
        steps: of the optimizer.
        g: source of the random numbers.
        project: whether steps are projected so that they do not go against `original_loss` (default: True).
        batch: clips of a step (default: 32).
        pad: see `caption_loss`.

    Returns:
        The `caption_loss` of each step.
    """
    losses = []
    for _ in range(steps):
        rows = torch.randint(len(clips), (batch,), generator=g)
        tokens = captions[rows, torch.randint(captions.shape[1], (batch,), generator=g)]
        logits, general = student(clips[rows], tokens), None
        if project:
            with torch.no_grad():
                said = original(clips[rows], tokens)
            general = original_loss(logits, said, tokens, pad)
        task = caption_loss(logits, tokens, pad)
        optimizer.zero_grad()
        optimizer.backward(task, general)
        optimizer.step()
        losses.append(task.item())
    return losses
