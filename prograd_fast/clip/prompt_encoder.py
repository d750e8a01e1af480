"""The prompt encoder: class features by the shortest way that the text tower allows."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from prograd_fast.clip.class_parallel import ClassShare, gathered, summed_in_backward
from prograd_fast.clip.packed import weights as tower_weights
from prograd_fast.clip.packed.chunks import chunks_within
from prograd_fast.clip.packed.compatibility import Inventory, Version, inventory, version_of
from prograd_fast.clip.packed.compiled import encode_compiled, number_of
from prograd_fast.clip.packed.encode import EncodePlan, Prompts, encode
from prograd_fast.clip.packed.forward import Part, Parting
from prograd_fast.clip.packed.packing import Packing, Placing
from prograd_fast.clip.text_tower import TextTower
from prograd_fast.ops.cotangent_batches import only_reverse_mode

_is_exporting = getattr(torch.compiler, "is_exporting", lambda: False)  # torch 2.5 has none


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
        class_group: ranks that share the classes, see `PromptedCLIP`; all of them are to call `forward`. Or None.
        early: how many positions before the end of text the features are read (default: 0).

    Attributes:
        token_ids: as given, or of the classes that this rank encodes.
        context_positions: likewise.
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
        class_group: "dist.ProcessGroup | None" = None,
        early: int = 0,
    ) -> None:
        super().__init__()
        if max_memory is not None and not 0 < max_memory < float("inf"):
            raise ValueError(f"max_memory: expected bytes, more than 0 and finite, or None, got {max_memory}.")
        self.tower = tower
        self.class_specific = class_specific
        self.max_memory = max_memory
        self.early = early
        self.share: ClassShare | None = None
        if class_group is not None:
            rows = torch.ones(len(token_ids), dtype=torch.int64)
            if tower.unpackable_reason is None:
                packing = Packing.of(token_ids, tower.ends(token_ids) - early, context_positions, class_specific)
                rows = packing.offsets.diff()
            self.share = ClassShare(class_group, rows, class_specific)
            token_ids, context_positions = token_ids[self.share.encoded], context_positions[self.share.encoded]
        self.register_buffer("token_ids", token_ids.to(tower.device), persistent=False)
        self.register_buffer("context_positions", context_positions.to(tower.device), persistent=False)
        self._packing: Packing | None = None
        if tower.unpackable_reason is None:
            self._packing = Packing.of(token_ids, tower.ends(token_ids) - early, context_positions, class_specific)
            self._bounds: list[int] = self._packing.offsets.tolist()
        # with their version: read at the first forward, and after a weight has changed
        self._constants: tuple[Version, Prompts] | None = None
        self._number = number_of(self)

    def forward(
        self, context: Tensor, deep: Tensor | None = None, before: int | None = None, *, unit: bool = False
    ) -> Tensor:
        """Features, differentiable in the arguments.

        Args:
            context: (G, M, d), or class-specific (G, C, M, d).
            deep: (J, M, d) deep prompts or (C, M, d) class tokens, see `PromptedCLIP.class_features`.
            before: the block before which class tokens come in; None: `deep` are deep prompts.
            unit: whether the features are normalised.

        Returns:
            (G, C, D).

        Raises:
            ValueError: `max_memory` is too little for a single class, or the tower cannot take deep prompts.
            RuntimeError: ranks share the classes, and the tower's weights are trained.
        """
        features: Tensor | None = None
        kernels: AbstractContextManager[Any] = nullcontext()
        if torch.compiler.is_compiling():
            # a program that is exported knows no encoder; tokens of each class take the tower's own code
            if self._packing is not None and before is None and not _is_exporting():
                features = encode_compiled(context, deep, self._number, self.tower.compute_dtype, unit)
        elif only_reverse_mode():
            features = self._encode_packed(context, deep, before, unit)
        else:
            kernels = sdpa_kernel(SDPBackend.MATH)  # the only attention that has a derivative in forward mode
        if features is None:
            with kernels:
                features = self._encode_unpacked(context, deep, before)
            return F.normalize(features, dim=-1) if unit else features
        return features

    def _encode_packed(self, context: Tensor, deep: Tensor | None, before: int | None, unit: bool) -> Tensor | None:
        needed = context.requires_grad or (deep is not None and deep.requires_grad)
        differentiable = torch.is_grad_enabled() and needed
        plan = self.plan(len(context), None, before, unit=unit, differentiable=differentiable)
        if plan is None:
            return None
        # their hooks stay outside of the tower
        deep = None if deep is None else deep.to(plan.prompts.words.dtype).view_as(deep)
        return encode(context.view_as(context), deep, plan)

    def plan(
        self,
        groups: int,
        dtype: torch.dtype | None,
        before: int | None = None,
        *,
        unit: bool,
        differentiable: bool,
    ) -> EncodePlan | None:
        """How the packed tower encodes G contexts.

        Args:
            groups: G.
            dtype: of the products; None for the tower's now.
            before: the block that tokens of each class come before, see `forward`.
            unit: whether the features are normalised.
            differentiable: whether a backward will come.

        Returns:
            The plan; None where the tower's own code has to run.

        Raises:
            ValueError: `max_memory` is too little for a single class.
        """
        if self._packing is None:
            return None
        found = inventory(self.tower.text)
        if found.is_touched(trainable=differentiable or torch.is_grad_enabled()):  # a compiled graph turns it off
            return None
        prompts = self._current_prompts(
            self._packing, found, self.tower.compute_dtype if dtype is None else dtype, before
        )
        chunks = chunks_within(
            self.max_memory,
            prompts.part.weights,
            groups=groups,
            n_prefix=prompts.part.n_prefix,
            offsets=prompts.part.offsets,
            bounds=self._bounds,
            differentiable=differentiable,
            n_own=0 if before is None else prompts.part.n_prefix - 1,
        )
        return EncodePlan(prompts, differentiable, unit, chunks, self.share)

    def prompts(self, context: Tensor) -> Tensor:
        """(G, C, L, d) token embeddings, the context (G, M, d) or (G, C, M, d) in its places; without positions."""
        words = self.tower.embed(self.token_ids)
        groups, (n_classes, _, d) = len(context), words.shape
        index = self.context_positions[..., None].expand(groups, n_classes, -1, d)
        rows = (context if self.class_specific else context[:, None]).to(words.dtype).expand(groups, n_classes, -1, d)
        return words.expand(groups, -1, -1, -1).scatter(2, index, rows)

    def _encode_unpacked(self, context: Tensor, deep: Tensor | None, before: int | None = None) -> Tensor:
        if self.share is not None:
            if torch.is_grad_enabled() and any(p.requires_grad for p in self.tower.text.parameters()):
                raise RuntimeError(
                    "class_group: expected a frozen text tower, got one whose weights require grad: their gradients "
                    "would be those of this rank's classes alone. Leave class_group out."
                )
            context, deep = summed_in_backward(self.share, context, deep)
        prompts = self.prompts(context)
        if deep is not None and before is not None:
            own = deep if self.share is None else deep[self.share.encoded]
            deep = own.repeat(len(context), 1, 1)
        features = self.tower.encode(
            prompts.flatten(0, 1), self.token_ids.repeat(len(context), 1), deep, before, self.early
        )
        features = features.unflatten(0, prompts.shape[:2])
        return features if self.share is None else gathered(self.share, features)

    def _current_prompts(self, packing: Packing, found: Inventory, dtype: torch.dtype, before: int | None) -> Prompts:
        tower = self.tower
        embeddings = tower.embedding.weight, tower.text.positional_embedding
        now = (*found.version(), *version_of(embeddings), tower.device, dtype, before)
        if self._constants is None or self._constants[0] != now:
            self._constants = now, self._read_prompts(packing, dtype, before)
        return self._constants[1]

    # they must serve training too, also where the first look was taken in inference mode
    @torch.inference_mode(False)
    @torch.no_grad()
    def _read_prompts(self, packing: Packing, dtype: torch.dtype, before: int | None) -> Prompts:
        tower, device, n_prefix = self.tower, self.tower.device, len(packing.prefix.token_ids)
        weights = tower_weights.read(tower.text, dtype)
        rows = (packing.prefix, packing.suffixes)
        positions = tower.text.positional_embedding.detach().to(weights.dtype)
        prefix_context, suffix_context = (Placing.of(some, packing.n_context) for some in rows)
        parting = None
        if before is not None:
            source, places, offsets = (x.to(device) for x in packing.parted(packing.n_context))
            parting = Parting(before, Part(weights, 1, offsets), n_prefix, source, places)
        return Prompts(
            Part(weights, n_prefix, packing.offsets.to(device)),
            words=tower.embed(torch.cat([some.token_ids for some in rows])).to(weights.dtype),
            positions=positions[torch.cat([some.positions for some in rows]).to(device)],
            context=prefix_context.followed_by(suffix_context, n_prefix).to(device),
            prefix_context=prefix_context.to(device),
            suffix_context=suffix_context.to(device),
            parting=parting,
        )

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_constants": None}  # a copy or a pickle reads them again

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._number = number_of(self)
