"""The distinct rows of the class prompts, and their positions."""

from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass(frozen=True)
class PromptRows:
    """Some positions of the prompts, in the order in which they are computed.

    Attributes:
        token_ids: (R,) int64; ids of context rows only keep their place.
        positions: (R,) int64, position of each row in its prompt.
        at: (K,) int64, which of the rows belong to the context.
        context: (K,) int64, which row of the context each of them is: m, or c·M + m for class-specific ones.
    """

    token_ids: Tensor
    positions: Tensor
    at: Tensor
    context: Tensor

    def to(self, device: torch.device) -> "PromptRows":
        """Copy to a device."""
        return PromptRows(*(getattr(self, field.name).to(device) for field in fields(self)))


@dataclass(frozen=True)
class Packing:
    """C prompts as one prefix that all of them share, and what follows it, class after class, without padding.

    In a causal tower a row depends on what stands before it. So the rows of the prefix are the same for all classes,
    what is behind the end of text does not matter, and neither is computed more than once.

    Attributes:
        prefix: the P rows that all classes share, P ≥ 1.
        suffixes: the T rows that follow, those of class c at offsets[c] ... offsets[c + 1] - 1; the last of them is its
            end of text.
        offsets: (C + 1,) int64.
    """

    prefix: PromptRows
    suffixes: PromptRows
    offsets: Tensor

    @classmethod
    def of(cls, token_ids: Tensor, ends: Tensor, context_positions: Tensor, class_specific: bool) -> "Packing":
        """Find the longest shared prefix.

        Args:
            token_ids: (C, L) int64.
            ends: (C,) int64, position of each end of text.
            context_positions: (C, M) int64, where the context stands; M may be 0.
            class_specific: whether each class has a context of its own.
        """
        n_classes, n_ctx = context_positions.shape
        # What stands in each place: a token's id, or -1 - m for row m of the context. Prompts that start alike share.
        content = token_ids.scatter(1, context_positions, (-1 - torch.arange(n_ctx)).expand(n_classes, -1))
        alike = (content == content[:1]).all(0)
        if class_specific:
            alike &= (content >= 0).all(0)
        n_prefix = int(torch.cat([alike, alike.new_zeros(1)]).int().argmin())
        n_prefix = min(n_prefix, int(ends.min()))  # the end of text is the last row of a suffix

        lengths = ends + 1 - n_prefix
        offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
        classes = torch.repeat_interleave(torch.arange(n_classes), lengths)
        positions = n_prefix + torch.arange(len(classes)) - offsets[classes]
        shift = n_ctx if class_specific else 0
        return cls(
            _prompt_rows(token_ids[0, :n_prefix], content[0, :n_prefix], torch.arange(n_prefix), torch.zeros(1)),
            _prompt_rows(token_ids[classes, positions], content[classes, positions], positions, shift * classes),
            offsets,
        )


def _prompt_rows(token_ids: Tensor, content: Tensor, positions: Tensor, first: Tensor) -> PromptRows:
    at = (content < 0).nonzero().flatten()
    return PromptRows(token_ids, positions, at, (-1 - content + first)[at].long())
