"""Class features of packed prompts, and their gradients, for autograd."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from prograd_fast.clip.packed.backward import backward
from prograd_fast.clip.packed.chunks import Chunk
from prograd_fast.clip.packed.forward import Kept, Part, forward
from prograd_fast.clip.packed.weights import TowerWeights
from prograd_fast.ops.cotangent_batches import TakesCotangentBatches


@dataclass(frozen=True)
class EncodePlan:
    """Everything about a forward but its rows.

    Attributes:
        weights: of the tower.
        offsets: (C + 1,) int64, of the classes among the suffixes.
        prefix_positions: (P, d) positional embeddings of the prefix.
        suffix_positions: (T, d) those of the suffixes.
        differentiable: whether to keep what a backward needs.
        chunks: empty to compute all classes at once.
        first: (T, 3·d) queries, keys and values of the suffixes in the first block where they do not depend on the
            context, or None to compute them. Only without chunks.
    """

    weights: TowerWeights
    offsets: Tensor
    prefix_positions: Tensor
    suffix_positions: Tensor
    differentiable: bool
    chunks: tuple[Chunk, ...] = ()
    first: Tensor | None = None

    def whole(self) -> Part:
        """The prefix and the suffixes of all classes."""
        return Part(self.weights, len(self.prefix_positions), self.offsets)

    def prefix(self) -> Part:
        """The prefix alone."""
        return Part(self.weights, len(self.prefix_positions), self.offsets[:1])

    def parts(self, suffixes: Tensor, of_prefix: Kept) -> Iterator[tuple[Chunk, Part, Tensor, Tensor]]:
        """Each chunk with its part, rows and positions, where the pass over the prefix has kept `of_prefix`."""
        key_values = [attention.key_value for attention in of_prefix.attentions]
        for chunk in self.chunks:
            rows = suffixes[..., chunk.rows, :].expand(len(key_values[0]), -1, -1)
            part = Part(self.weights, 0, chunk.offsets, key_values)
            yield chunk, part, rows, self.suffix_positions[chunk.rows]


def encode(prefix: Tensor, suffixes: Tensor, deep: Tensor | None, plan: EncodePlan) -> Tensor:
    """Features of C prompts for each of G contexts.

    Args:
        prefix: (G, P, d) token embeddings without positions.
        suffixes: (T, d), or (G, T, d) where they hold a part of the context.
        deep: (J, M, d), or None: replaces rows 1 ... M of the prefix before block j = 1 ... J.
        plan: weights, positions and chunks.

    Returns:
        (G, C, D) features, not normalised, once differentiable in `prefix`, `suffixes` and `deep`.
    """
    with torch.autocast(prefix.device.type, enabled=False):
        features, *_ = _Encode.apply(prefix, suffixes, deep, plan)
    return features


class _Encode(TakesCotangentBatches):
    @staticmethod
    def forward(prefix: Tensor, suffixes: Tensor, deep: Tensor | None, plan: EncodePlan) -> tuple[Tensor, ...]:
        if plan.chunks:
            return _encode_in_chunks(prefix, suffixes, deep, plan)
        kept = Kept() if plan.differentiable else None
        rows = torch.cat([prefix, suffixes.expand(len(prefix), -1, -1)], 1)
        positions = torch.cat([plan.prefix_positions, plan.suffix_positions])
        features = forward(plan.whole(), rows, positions, deep, plan.first, kept)
        return (features, *(() if kept is None else kept.tensors()))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        *tensors, ctx.plan = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, *output[1:])

    @staticmethod
    def vjps(ctx: Any, cotangents: Tensor) -> tuple[Tensor | None, ...]:
        _, of_suffixes, of_deep, _ = ctx.needs_input_grad
        results = _EncodeBackward.apply(cotangents, ctx.plan, of_suffixes, *ctx.saved_tensors)
        d_prefix, d_suffixes, d_deep = results
        return d_prefix, d_suffixes if of_suffixes else None, d_deep if of_deep else None, None


class _EncodeBackward(torch.autograd.Function):
    """The gradients of `_Encode` for K cotangents (K, G, C, D); a batch of them under vmap only makes K larger."""

    @staticmethod
    def forward(cotangents: Tensor, plan: EncodePlan, of_suffixes: bool, *saved: Tensor) -> tuple[Tensor, ...]:
        prefix, suffixes, deep, *tensors = saved
        kept = Kept.of(tensors, len(plan.weights.blocks))
        n_deep = (0, 0) if deep is None else (deep.shape[0], deep.shape[1])
        with torch.autocast(prefix.device.type, enabled=False):
            if plan.chunks:
                return _backward_in_chunks(cotangents, plan, of_suffixes, prefix, suffixes, kept, n_deep)
            d_rows, d_deep = backward(plan.whole(), cotangents, kept, [], n_deep, of_suffixes)
            n_prefix = prefix.shape[1]
            return d_rows[:, :, :n_prefix].clone(), d_rows[:, :, n_prefix:].clone(), d_deep

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        pass

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], cotangents: Tensor, *others: Any) -> tuple[Any, Any]:
        if any(dim is not None for dim in in_dims[1:]):
            raise RuntimeError(
                "class_features: expected one set of prompts, got a batch of them under vmap. Pass it G contexts."
            )
        batch = cotangents.movedim(in_dims[0] or 0, 0)
        results = _EncodeBackward.apply(batch.flatten(0, 1), *others)
        return tuple(d.unflatten(0, batch.shape[:2]) for d in results), (0,) * len(results)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> None:
        raise RuntimeError(
            "class_features: expected to be differentiated once, got a second derivative, which the packed text "
            "tower does not have."
        )


def _encode_in_chunks(prefix: Tensor, suffixes: Tensor, deep: Tensor | None, plan: EncodePlan) -> tuple[Tensor, ...]:
    """The prefix is computed once; then each chunk, with the prefix's keys and values."""
    kept = Kept()
    forward(plan.prefix(), prefix, plan.prefix_positions, deep, None, kept)
    features = [forward(part, rows, positions) for _, part, rows, positions in plan.parts(suffixes, kept)]
    return (torch.cat(features, 1), *(kept.tensors() if plan.differentiable else ()))


def _backward_in_chunks(
    cotangents: Tensor,
    plan: EncodePlan,
    of_suffixes: bool,
    prefix: Tensor,
    suffixes: Tensor,
    kept: Kept,
    n_deep: tuple[int, int],
) -> tuple[Tensor, ...]:
    """Each chunk is computed once more, and differentiated; then the prefix, with what the chunks send back to it."""
    # What the chunks send back is added up in the accumulation dtype.
    shape = (*cotangents.shape[:2], prefix.shape[1], 2 * plan.weights.width)
    d_prefix_key_values = [plan.weights.norm.weight.new_zeros(shape) for _ in plan.weights.blocks]
    d_suffixes = []
    for chunk, part, rows, positions in plan.parts(suffixes, kept):
        again = Kept()
        forward(part, rows, positions, kept=again)
        of_chunk = cotangents[:, :, chunk.classes]
        d_suffixes.append(backward(part, of_chunk, again, d_prefix_key_values, (0, 0), of_suffixes)[0])
    d_prefix, d_deep = backward(plan.prefix(), cotangents[:, :, :0], kept, d_prefix_key_values, n_deep, of_suffixes)
    return d_prefix, torch.cat(d_suffixes, 2), d_deep
