"""The distinct rows of the class prompts, and their positions."""

from dataclasses import dataclass

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


@dataclass(frozen=True)
class Placing:
    """Which rows of the prompts belong to the context, on the device where they are computed.

    Attributes:
        at: (K,) int64, which of the rows.
        context: (K,) int64, which row of the context each of them is.
        start: where all rows of the context stand in one piece, in their order; None where they do not.
    """

    at: Tensor
    context: Tensor
    start: int | None

    @classmethod
    def of(cls, rows: PromptRows, n_context: int) -> "Placing":
        """Of some rows on the CPU, where the context has `n_context` rows altogether."""
        start = int(rows.at[0]) if len(rows.at) == n_context > 0 else 0
        order = torch.arange(n_context)
        whole = n_context > 0 and torch.equal(rows.at, start + order) and torch.equal(rows.context, order)
        return cls(rows.at, rows.context, start if whole else None)

    def to(self, device: torch.device) -> "Placing":
        """Copy to a device."""
        return Placing(self.at.to(device), self.context.to(device), self.start)

    @property
    def anywhere(self) -> bool:
        """Whether any of the rows belongs to the context."""
        return len(self.at) > 0

    def followed_by(self, others: "Placing", n_rows: int) -> "Placing":
        """Of these `n_rows` rows with the others behind them."""
        if not others.anywhere:
            return self
        if not self.anywhere:
            return Placing(n_rows + others.at, others.context, None if others.start is None else n_rows + others.start)
        return Placing(torch.cat([self.at, n_rows + others.at]), torch.cat([self.context, others.context]), None)

    def into(self, words: Tensor, context: Tensor) -> Tensor:
        """(G, R, d) token embeddings: `words` (R, d) with the context's rows (G, ..., d) in their places."""
        rows = words.expand(len(context), -1, -1)
        if self.start is not None:
            return torch.cat([rows[:, : self.start], context, rows[:, self.start + context.shape[1] :]], 1)
        return rows.index_copy(1, self.at, context[:, self.context]) if self.anywhere else rows

    def out_of(self, d_rows: Tensor, context: Tensor) -> Tensor:
        """The gradients (K, *context.shape) of the context from those of the rows, (K, G, R, d)."""
        n, groups, _, d = d_rows.shape
        n_context = context[0].numel() // d if groups else 0
        if self.start is not None:
            gradients = d_rows[:, :, self.start : self.start + n_context].to(context.dtype)
        else:
            gradients = d_rows.new_zeros(n, groups, n_context, d, dtype=context.dtype)
            of_context = d_rows[:, :, self.at].to(context.dtype)
            torch.ops.aten.index_put_(gradients, [None, None, self.context], of_context, True)
        return gradients.reshape(n, *context.shape)


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
        n_context: how many rows the contexts of all classes have.
    """

    prefix: PromptRows
    suffixes: PromptRows
    offsets: Tensor
    n_context: int

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
            n_context=n_ctx * n_classes if class_specific else n_ctx,
        )

    def parted(self, n_ctx: int) -> tuple[Tensor, Tensor, Tensor]:
        """The rows of the same prompts when each class has a shared context's rows, and all behind them, for itself.

        The rows before the context, 1 of them, stay shared; class after class follow its own.

        Args:
            n_ctx: rows 1 ... n_ctx of the prefix are the context.

        Returns:
            (R',) int64, which row of this packing each of these is; (C, n_ctx) int64, which of these are in the
            context's places; (C + 1,) int64, offsets of the classes behind the shared row.
        """
        n_prefix = len(self.prefix.token_ids)
        lengths = self.offsets.diff() + n_prefix - 1
        offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
        classes = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
        positions = 1 + torch.arange(len(classes)) - offsets[classes]
        source = torch.where(positions < n_prefix, positions, positions + self.offsets[classes])
        places = 1 + offsets[:-1, None] + torch.arange(n_ctx)
        return torch.cat([source.new_zeros(1), source]), places, offsets


def _prompt_rows(token_ids: Tensor, content: Tensor, positions: Tensor, first: Tensor) -> PromptRows:
    at = (content < 0).nonzero().flatten()
    return PromptRows(token_ids, positions, at, (-1 - content + first)[at].long())
