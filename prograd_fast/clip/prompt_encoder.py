"""The prompt encoder: class features by the shortest way that the text tower allows."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from prograd_fast.clip.packed import weights as tower_weights
from prograd_fast.clip.packed.chunks import chunks_within
from prograd_fast.clip.packed.compatibility import is_touched
from prograd_fast.clip.packed.encode import EncodePlan, encode
from prograd_fast.clip.packed.forward import first_block
from prograd_fast.clip.packed.packing import Packing, PromptRows
from prograd_fast.clip.packed.weights import TowerWeights
from prograd_fast.clip.text_tower import TextTower


@dataclass(frozen=True)
class _Constants:
    """The inputs of a forward that do not depend on the context, on the tower's device, in its compute dtype.

    Attributes:
        version: of the tower that they were read from.
        weights: of the tower.
        prefix: the P rows that all classes share.
        suffixes: the T rows that follow.
        offsets: (C + 1,) int64, of the classes among the suffixes.
        prefix_words: (P, d) token embeddings; those of context rows are not used.
        suffix_words: (T, d).
        prefix_positions: (P, d) positional embeddings.
        suffix_positions: (T, d).
    """

    version: tuple[Any, ...]
    weights: TowerWeights
    prefix: PromptRows
    suffixes: PromptRows
    offsets: Tensor
    prefix_words: Tensor
    suffix_words: Tensor
    prefix_positions: Tensor
    suffix_positions: Tensor

    @cached_property
    def first(self) -> Tensor:
        """(T, 3·d) queries, keys and values of the suffixes in the first block, where no context is among them."""
        with torch.inference_mode(False), torch.no_grad():
            return first_block(self.suffix_words + self.suffix_positions, self.weights)


class PromptEncoder(nn.Module):
    """Encodes the prompts of C classes, with context tokens in some of their places.

    In a causal tower of CLIP's blocks (`TextTower.unpackable_reason` is None) rows that are the same for all classes
    are computed once, and nothing is computed that does not reach an end of text: see `prograd_fast.clip.packed`. In
    other towers every prompt goes through the tower's own code. So it does while somebody trains the tower's weights or
    has hooks in it.

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
        self._constants: _Constants | None = None  # read at the first forward, and after a weight has changed

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
        if self._packing is None or is_touched(self.tower.text):
            return self._encode_unpacked(context, deep)
        constants = self._current_constants(self._packing)
        dtype = constants.weights.dtype
        rows = context.to(dtype).flatten(1, -2)
        prefix = _with_context(constants.prefix_words, constants.prefix, rows).expand(len(context), -1, -1)
        suffixes = _with_context(constants.suffix_words, constants.suffixes, rows)
        deep = None if deep is None else deep.to(dtype).view_as(deep)  # its hooks stay outside of the tower
        needed = (x.requires_grad for x in (prefix, suffixes, deep) if x is not None)
        differentiable = torch.is_grad_enabled() and any(needed)
        chunks = chunks_within(
            self.max_memory,
            constants.weights,
            groups=len(context),
            n_prefix=len(constants.prefix_words),
            offsets=constants.offsets,
            bounds=self._bounds,
            differentiable=differentiable,
        )
        plan = EncodePlan(
            constants.weights,
            constants.offsets,
            constants.prefix_positions,
            constants.suffix_positions,
            differentiable,
            chunks,
            first=constants.first if suffixes.ndim == 2 and not chunks else None,
        )
        return encode(prefix, suffixes, deep, plan)

    def prompts(self, context: Tensor) -> Tensor:
        """(G, C, L, d) token embeddings, the context (G, M, d) or (G, C, M, d) in its places; without positions."""
        words = self.tower.embed(self.token_ids)
        groups, (n_classes, _, d) = len(context), words.shape
        index = self.context_positions[..., None].expand(groups, n_classes, -1, d)
        rows = (context if self.class_specific else context[:, None]).to(words.dtype).expand(groups, n_classes, -1, d)
        return words.expand(groups, -1, -1, -1).scatter(2, index, rows)

    def _encode_unpacked(self, context: Tensor, deep: Tensor | None) -> Tensor:
        prompts = self.prompts(context)
        features = self.tower.encode(prompts.flatten(0, 1), self.token_ids.repeat(len(context), 1), deep)
        return features.unflatten(0, prompts.shape[:2])

    def _current_constants(self, packing: Packing) -> _Constants:
        tower = self.tower
        version = (*tower_weights.version(tower.text), tower.device, tower.compute_dtype)
        if self._constants is None or self._constants.version != version:
            self._constants = self._read_constants(packing, version)
        return self._constants

    # the constants must serve training too, also where the first look was taken in inference mode
    @torch.inference_mode(False)
    @torch.no_grad()
    def _read_constants(self, packing: Packing, version: tuple[Any, ...]) -> _Constants:
        tower = self.tower
        prefix, suffixes = packing.prefix.to(tower.device), packing.suffixes.to(tower.device)
        weights = tower_weights.read(tower.text, tower.compute_dtype)
        positions = tower.text.positional_embedding.detach().to(weights.dtype)
        return _Constants(
            version,
            weights,
            prefix,
            suffixes,
            offsets=packing.offsets.to(tower.device),
            prefix_words=tower.embed(prefix.token_ids).to(weights.dtype),
            suffix_words=tower.embed(suffixes.token_ids).to(weights.dtype),
            prefix_positions=positions[prefix.positions],
            suffix_positions=positions[suffixes.positions],
        )

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_constants": None}  # a copy or a pickle reads them again


def _with_context(words: Tensor, rows: PromptRows, context: Tensor) -> Tensor:
    """(R, d) token embeddings, or (G, R, d) where rows of the context (G, ..., d) stand among them."""
    if not len(rows.at):
        return words
    return words.expand(len(context), -1, -1).index_copy(1, rows.at, context[:, rows.context])
