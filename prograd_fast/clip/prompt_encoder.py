"""From prompts to class features by the shortest way that the text tower allows."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prograd_fast.clip import packed_tower, tower_weights
from prograd_fast.clip.packed_tower import KEPT, Chunk, Plan
from prograd_fast.clip.packing import Packing, Rows
from prograd_fast.clip.text_tower import TextTower
from prograd_fast.clip.tower_weights import Weights

# What a pass needs at its height beside what it keeps, per row in units of d: forward, and backward of two cotangents.
_FORWARD, _BACKWARD = 14, 24
_ROWS_AT_ONCE = 4096  # without a backward nothing is kept, and more rows at once are not faster


@dataclass(frozen=True)
class _Constants:
    """What does not depend on the context: on the tower's device, in the dtype that it computes in."""

    weights: Weights
    prefix: Rows
    suffixes: Rows
    offsets: Tensor
    prefix_words: Tensor  # (P, d) token embeddings, those of context rows are not used
    suffix_words: Tensor  # (T, d)
    prefix_positions: Tensor  # (P, d)
    suffix_positions: Tensor  # (T, d)


class PromptEncoder(nn.Module):
    """Encodes the prompts of C classes, with context tokens in some of their places.

    In a causal tower of CLIP's blocks (`TextTower.unpackable_reason` is None) rows that are the same for all classes
    are computed once, and nothing is computed that does not reach an end of text: see `packed_tower`. In other towers
    every prompt goes through the tower's own code. So it does while somebody trains the tower's weights or has hooks
    in it.

    Args:
        tower: the text tower.
        token_ids: (C, L) int64 prompts; ids at context positions only keep their place.
        context_positions: (C, M) int64, where the context stands; M may be 0.
        class_specific: whether each class has a context of its own.
        max_memory: bytes that the activations of the packed tower may take, or None for no limit.
    """

    token_ids: Tensor
    context_positions: Tensor

    def __init__(
        self,
        tower: TextTower,
        token_ids: Tensor,
        context_positions: Tensor,
        class_specific: bool,
        max_memory: float | None = None,
    ) -> None:
        super().__init__()
        if max_memory is not None and not 0 < max_memory < float("inf"):
            raise ValueError(f"max_memory: expected bytes, more than 0 and finite, or None, got {max_memory}.")
        self.tower = tower
        self.class_specific = class_specific
        self.max_memory = max_memory
        self.register_buffer("token_ids", token_ids.to(tower.device), persistent=False)
        self.register_buffer("context_positions", context_positions.to(tower.device), persistent=False)
        self._packing = None
        if tower.unpackable_reason is None:
            self._packing = Packing.of(token_ids, tower.ends(token_ids), context_positions, class_specific)
            self._bounds: list[int] = self._packing.offsets.tolist()
        self._known: dict[str, Any] = {}

    def forward(self, context: Tensor, deep: Tensor | None = None) -> Tensor:
        """Features, not normalised, differentiable in the arguments.

        Args:
            context: (G, M, d), or class-specific (G, C, M, d).
            deep: (J, M, d) deep prompts, see `PromptedCLIP.class_features`.

        Returns:
            (G, C, D).

        Raises:
            ValueError: `max_memory` is too little for a single class, or the tower cannot take deep prompts.
        """
        if self._packing is None or tower_weights.is_touched(self.tower.text):
            return self._in_the_towers_own_way(context, deep)
        known = self._constants(self._packing)
        dtype = known.weights.dtype
        rows = context.to(dtype).flatten(1, -2)
        prefix = _with_context(known.prefix_words, known.prefix, rows).expand(len(context), -1, -1)
        suffixes = _with_context(known.suffix_words, known.suffixes, rows)
        deep = None if deep is None else deep.to(dtype).view_as(deep)  # its hooks stay outside of the tower
        needed = (x.requires_grad for x in (prefix, suffixes, deep) if x is not None)
        differentiable = torch.is_grad_enabled() and any(needed)
        chunks = self._chunks(len(context), known, differentiable)
        first = self._first(known) if suffixes.ndim == 2 and not chunks else None
        plan = Plan(
            known.weights, known.offsets, known.prefix_positions, known.suffix_positions, differentiable, chunks, first
        )
        return packed_tower.encode(prefix, suffixes, deep, plan)

    def _in_the_towers_own_way(self, context: Tensor, deep: Tensor | None) -> Tensor:
        words = self.tower.embed(self.token_ids)
        groups, (n_classes, _, d) = len(context), words.shape
        index = self.context_positions[..., None].expand(groups, n_classes, -1, d)
        rows = (context if self.class_specific else context[:, None]).to(words.dtype).expand(groups, n_classes, -1, d)
        prompts = words.expand(groups, -1, -1, -1).scatter(2, index, rows).flatten(0, 1)
        features = self.tower.encode(prompts, self.token_ids.repeat(groups, 1), deep)
        return features.unflatten(0, (groups, n_classes))

    def _constants(self, packing: Packing) -> _Constants:
        key = (*tower_weights.version(self.tower.text), self.tower.device, self.tower.compute_dtype)
        if self._known.get("key") != key:
            self._known = {"key": key, "constants": self._read_constants(packing)}
        constants = self._known["constants"]
        return constants

    # what is kept here must serve training too, also where the first look was taken in inference mode
    @torch.inference_mode(False)
    @torch.no_grad()
    def _read_constants(self, packing: Packing) -> _Constants:
        tower = self.tower
        prefix, suffixes = packing.prefix.to(tower.device), packing.suffixes.to(tower.device)
        weights = tower_weights.read(tower.text, tower.compute_dtype)
        positions = tower.text.positional_embedding.detach().to(weights.dtype)
        return _Constants(
            weights,
            prefix,
            suffixes,
            packing.offsets.to(tower.device),
            tower.embed(prefix.token_ids).to(weights.dtype),
            tower.embed(suffixes.token_ids).to(weights.dtype),
            positions[prefix.positions],
            positions[suffixes.positions],
        )

    @torch.inference_mode(False)
    @torch.no_grad()
    def _first(self, known: _Constants) -> Tensor:
        """Queries, keys and values of constant suffixes in the first block."""
        if "first" not in self._known:
            rows = known.suffix_words + known.suffix_positions
            self._known["first"] = packed_tower.first_block(rows, known.weights)
        first: Tensor = self._known["first"]
        return first

    def _chunks(self, groups: int, known: _Constants, differentiable: bool) -> tuple[Chunk, ...]:
        """As many classes at once as fit into `max_memory`; nothing if all of them do."""
        weights = known.weights
        kept = KEPT * len(weights.blocks) + _BACKWARD if differentiable else _FORWARD
        row = groups * weights.width * weights.norm.weight.new_empty(0, dtype=weights.dtype).element_size() * kept
        limit = self._bounds[-1] if differentiable else max(_ROWS_AT_ONCE // groups, 1)
        if self.max_memory is not None:
            limit = min(limit, int(self.max_memory / row) - len(known.prefix_words))
        if limit >= self._bounds[-1]:
            return ()
        chunks, start = [], 0
        while start < len(self._bounds) - 1:
            stop = start
            while stop + 1 < len(self._bounds) and self._bounds[stop + 1] - self._bounds[start] <= limit:
                stop += 1
            if stop == start and self.max_memory is None:
                stop += 1
            if stop == start:
                longest = max(b - a for a, b in zip(self._bounds, self._bounds[1:], strict=False))
                least = row * (longest + len(known.prefix_words))
                raise ValueError(
                    f"max_memory: expected at least {least / 1e6:.3g} MB, which the longest prompt takes, got "
                    f"{(self.max_memory or 0) / 1e6:.3g} MB. Give more, or fewer contexts at once."
                )
            offsets = known.offsets[start : stop + 1] - self._bounds[start]
            chunks.append(Chunk(slice(start, stop), slice(self._bounds[start], self._bounds[stop]), offsets))
            start = stop
        return tuple(chunks)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_known": {}}  # computed again where it is needed


def _with_context(words: Tensor, rows: Rows, context: Tensor) -> Tensor:
    """(R, d) token embeddings, or (G, R, d) where rows of the context (G, ..., d) stand among them."""
    if not len(rows.at):
        return words
    return words.expand(len(context), -1, -1).index_copy(1, rows.at, context[:, rows.context])
