"""Forward of the packed tower: features of some prompts, and the tensors that their backward needs."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor

from prograd_fast.clip.packed.weights import Block, Linear, Norm, TowerWeights

_CPU_ROWS = 512


def mlp_rows(x: Tensor) -> int:
    """How many of the rows of x (..., rows, d) an MLP takes at a time.

    On a CPU so many that its hidden layer, 4·d wide, stays in the caches between its products. Elsewhere all: pieces
    would only be more launches, and the products of the backward would be batched ones.
    """
    return _CPU_ROWS if x.is_cpu else max(1, x.shape[-2])


@dataclass(frozen=True)
class Part:
    """Rows that go through the blocks together: the prefix, the suffixes of some classes, or both.

    Attributes:
        weights: of the tower.
        n_prefix: the number of rows of the prefix that lead each group; 0 where they were computed before.
        offsets: (N + 1,) int64, of the suffixes that follow, from 0; N may be 0.
        prefix_key_values: where the prefix was computed before: its keys and values (G, P, 2·d) in each block.
    """

    weights: TowerWeights
    n_prefix: int
    offsets: Tensor
    prefix_key_values: Sequence[Tensor] = ()

    @cached_property
    def ends(self) -> Tensor:
        """(N,) int64, which rows of a group are the ends of text."""
        return self.n_prefix + self.offsets[1:] - 1

    def given_prefix(self, i: int) -> Tensor | None:
        """The prefix's keys and values (G, P, 2·d) in block i, if it was computed before."""
        return None if self.n_prefix else self.prefix_key_values[i]


@dataclass(frozen=True)
class Parting:
    """From a block on, each class has tokens of its own in the places of the context, and so all rows behind them too.

    Attributes:
        block: before which one.
        part: the rows from there on: one prefix row, and the suffixes with all that stands behind it.
        n_prefix: number P of rows of the prefix before that block.
        source: (R',) int64, which row before that block each of them was.
        places: (C, M) int64, which of them the class tokens are.
    """

    block: int
    part: Part
    n_prefix: int
    source: Tensor
    places: Tensor

    def of_classes(self, classes: slice, rows: slice) -> "Parting":
        """Of some classes that stand side by side, whose suffixes were these rows before."""
        own = self.n_prefix - 1
        start, stop = rows.start + own * classes.start, rows.stop + own * classes.stop
        source = self.source[1 + start : 1 + stop]
        source = torch.cat([self.source[:1], torch.where(source < self.n_prefix, source, source - rows.start)])
        offsets = self.part.offsets[classes.start : classes.stop + 1] - start
        part = Part(self.part.weights, self.part.n_prefix, offsets)
        return Parting(self.block, part, self.n_prefix, source, self.places[classes] - start)

    def part_rows(self, rows: Tensor, tokens: Tensor) -> Tensor:
        """(G, R', d) from the rows before, (G, R, d), and the class tokens (C, M, d)."""
        own = rows.index_select(1, self.source)
        return own.index_copy_(1, self.places.flatten(), tokens.flatten(0, 1).expand(len(rows), -1, -1))

    def join_gradients(self, d_rows: Tensor, n_rows: int) -> tuple[Tensor, Tensor]:
        """The gradients of the `n_rows` rows before, (K, G, R, d), and of the tokens (K, C, M, d)."""
        d_tokens = d_rows[:, :, self.places].sum(1)
        d_rows = d_rows.index_fill(2, self.places.flatten(), 0.0)
        d_before = d_rows.new_zeros(*d_rows.shape[:2], n_rows, d_rows.shape[-1])
        return d_before.index_add_(2, self.source, d_rows), d_tokens


class KeptNorm(NamedTuple):
    """The residual stream before a norm, (rows, d), and the norm's statistics, (rows, 2)."""

    total: Tensor
    statistics: Tensor


class KeptAttention(NamedTuple):
    """The norm before an attention, and what the attention reads.

    That is one tensor of queries, keys and values (G, R, 3·d); in the last block, where only the N ends of text have
    queries, these (G, N, d), and the keys and values (G, R, 2·d).
    """

    norm: KeptNorm
    qkv: tuple[Tensor, ...]

    def query_key_value(self) -> tuple[Tensor, Tensor]:
        """Queries, and keys and values."""
        if len(self.qkv) == 2:
            return self.qkv[0], self.qkv[1]
        width = self.qkv[0].shape[-1] // 3
        return self.qkv[0][..., :width], self.qkv[0][..., width:]


class KeptMLP(NamedTuple):
    """The norm before an MLP, and the inputs of its GELU, in pieces of `mlp_rows`."""

    norm: KeptNorm
    hidden: list[Tensor]


@dataclass
class Kept:
    """The tensors that the backward of a part needs; it takes them out, last block first, so that they are freed."""

    attentions: list[KeptAttention] = field(default_factory=list)
    mlps: list[KeptMLP] = field(default_factory=list)
    norm: KeptNorm | None = None

    def tensors(self) -> list[Tensor]:
        """The tensors in one list, for autograd."""
        found: list[Tensor] = []
        for attention, mlp in zip(self.attentions, self.mlps, strict=True):
            found += [*attention.norm, *attention.qkv, *mlp.norm, *mlp.hidden]
        return [*found, *(self.norm or ())]

    @classmethod
    def of(cls, tensors: Sequence[Tensor], n_blocks: int) -> "Kept":
        """Give the tensors of such a list their names again."""
        rest = iter(tensors)
        kept = cls()
        for i in range(n_blocks):
            norm = KeptNorm(next(rest), next(rest))
            kept.attentions.append(KeptAttention(norm, tuple(islice(rest, 2 if i == n_blocks - 1 else 1))))
            norm = KeptNorm(next(rest), next(rest))
            n_pieces = max(1, -(-len(norm.total) // mlp_rows(norm.total)))
            kept.mlps.append(KeptMLP(norm, [next(rest) for _ in range(n_pieces)]))
        kept.norm = KeptNorm(next(rest), next(rest))
        return kept


def forward(
    part: Part,
    rows: Tensor,
    positions: Tensor,
    deep: Tensor | None = None,
    first: Tensor | None = None,
    kept: Kept | None = None,
    parting: Parting | None = None,
) -> Tensor:
    """Features of the classes of a part.

    Args:
        part: which rows these are.
        rows: (G, R, d) token embeddings without positions.
        positions: (R, d) positional embeddings.
        deep: (J, M, d), or None: replaces rows 1 ... M of each group before block j = 1 ... J. With `parting` the class
            tokens (N, M, d).
        first: queries, keys and values of the suffixes in the first block, see `first_block`; None to compute them.
        kept: empty, to collect the tensors that `backward` needs; None without a backward.
        parting: where the classes get tokens of their own; None: nowhere.

    Returns:
        (G, N, D), not normalised.
    """
    weights, groups = part.weights, len(rows)
    total, branch = rows.flatten(0, 1), positions.expand_as(rows).flatten(0, 1)
    of_context = deep if parting is None else None
    for i, block in enumerate(weights.blocks):
        if parting is not None and i == parting.block:
            assert deep is not None
            part, total = (
                parting.part,
                parting.part_rows((total + branch).unflatten(0, (groups, -1)), deep).flatten(0, 1),
            )
            branch = torch.zeros_like(total)
        total, branch = _attention(part, i, groups, total, branch, of_context, first, kept)
        total, branch = _mlp(total, branch, block, weights.approximate, kept)
    normed, norm = _add_norm(total, branch, weights.norm)
    if kept is not None:
        kept.norm = norm
    features = normed if weights.projection is None else weights.projection(normed)
    return features.unflatten(0, (groups, -1))


def first_block(rows: Tensor, weights: TowerWeights) -> Tensor:
    """Queries, keys and values (T, 3·d) of rows (T, d), positions included, in the first block."""
    block = weights.blocks[0]
    normed, _ = _add_norm(rows, torch.zeros_like(rows), block.norm_1)
    return block.qkv(normed)


def _attention(
    part: Part,
    i: int,
    groups: int,
    total: Tensor,
    branch: Tensor,
    deep: Tensor | None,
    first: Tensor | None,
    kept: Kept | None,
) -> tuple[Tensor, Tensor]:
    """The residual stream and what attention adds to it: of all rows, in the last block of the ends of text."""
    weights, block = part.weights, part.weights.blocks[i]
    last = i == len(weights.blocks) - 1
    normed, norm = _add_norm(total, branch, block.norm_1)
    if deep is not None and 1 <= i <= len(deep):
        _replace_context(groups, deep[i - 1], block.norm_1, normed, norm)
    total = norm.total
    if last:
        key_value = weights.key_value(normed).unflatten(0, (groups, -1))
        query = weights.query(normed.unflatten(0, (groups, -1))[:, part.ends])
        attention = KeptAttention(norm, (query, key_value))
        total = total.unflatten(0, (groups, -1))[:, part.ends].flatten(0, 1)
    else:
        qkv = _qkv(part, normed.unflatten(0, (groups, -1)), block.qkv, first if i == 0 else None)
        attention = KeptAttention(norm, (qkv,))
    if kept is not None:
        kept.attentions.append(attention)
    return total, block.out(_attend(part, *attention.query_key_value(), i, last).flatten(0, 1))


def _mlp(total: Tensor, branch: Tensor, block: Block, approximate: int, kept: Kept | None) -> tuple[Tensor, Tensor]:
    """The residual stream and what the MLP adds to it."""
    normed, norm = _add_norm(total, branch, block.norm_2)
    hidden: list[Tensor] | None = None
    if kept is not None:
        hidden = []
        kept.mlps.append(KeptMLP(norm, hidden))
    pieces = [_mlp_piece(piece, block, approximate, hidden) for piece in normed.split(mlp_rows(normed))]
    return norm.total, pieces[0] if len(pieces) == 1 else torch.cat(pieces)


def _mlp_piece(normed: Tensor, block: Block, approximate: int, kept: list[Tensor] | None) -> Tensor:
    hidden, active = block.up.with_gelu(normed, approximate)
    if kept is not None:
        kept.append(hidden)
    return block.down(active)


def _qkv(part: Part, normed: Tensor, qkv: Linear, of_suffixes: Tensor | None) -> Tensor:
    if of_suffixes is None:
        return qkv(normed)
    return torch.cat([qkv(normed[:, : part.n_prefix]), of_suffixes.expand(len(normed), -1, -1)], 1)


def _replace_context(groups: int, deep: Tensor, norm: Norm, normed: Tensor, kept: KeptNorm) -> None:
    new_normed, new_kept = _add_norm(deep, torch.zeros_like(deep), norm)
    for x, new in zip((normed, *kept), (new_normed, *new_kept), strict=True):
        x.unflatten(0, (groups, -1))[:, 1 : 1 + len(deep)] = new


def _attend(part: Part, query: Tensor, key_value: Tensor, i: int, last: bool) -> Tensor:
    """Every query's mixture of values, as `query`. In the last block there are no queries of the prefix."""
    weights, attended = part.weights, query.new_empty(query.shape)
    torch.ops.prograd_fast.shared_prefix_attention_out(
        query,
        key_value,
        part.given_prefix(i),
        part.n_prefix,
        part.offsets,
        weights.heads,
        weights.scale,
        last,
        out=attended,
    )
    return attended


def _add_norm(x: Tensor, branch: Tensor, norm: Norm) -> tuple[Tensor, KeptNorm]:
    """The norm of x + branch, and the tensors that its backward needs."""
    x, branch = x.contiguous(), branch.contiguous()
    total, normed = torch.empty_like(branch), torch.empty_like(branch)
    statistics = norm.weight.new_empty(len(branch), 2)
    torch.ops.prograd_fast.add_layer_norm_out(
        x, branch, norm.weight, norm.bias, norm.eps, total=total, normed=normed, statistics=statistics
    )
    return normed, KeptNorm(total, statistics)
