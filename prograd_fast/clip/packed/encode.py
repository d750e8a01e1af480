"""Class features of packed prompts, and their gradients, for autograd."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from prograd_fast.clip.class_parallel import ClassShare
from prograd_fast.clip.packed.backward import backward
from prograd_fast.clip.packed.chunks import Chunk
from prograd_fast.clip.packed.forward import Kept, Part, Parting, first_block, forward
from prograd_fast.clip.packed.packing import Placing
from prograd_fast.ops.cotangent_batches import TakesCotangentBatches

NO_SECOND_DERIVATIVE = (
    "class_features: expected to be differentiated once, got a second derivative, which the packed text tower does not "
    "have. torch.func.hessian(net.class_features) goes through the tower's own code."
)

_LEAST_NORM = 1e-12  # of features that are made unit rows, as in torch.nn.functional.normalize


@dataclass(frozen=True)
class Prompts:
    """The inputs of a forward that do not depend on the context, on the tower's device, in the dtype of its products.

    Attributes:
        part: all rows: the P rows of the prefix, then the T rows of the suffixes.
        words: (P + T, d) token embeddings; those of context rows are not used.
        positions: (P + T, d) positional embeddings.
        context: which of the rows belong to the context.
        prefix_context: which of those of the prefix.
        suffix_context: which of those of the suffixes.
        parting: where the classes get tokens of their own; None: nowhere.
    """

    part: Part
    words: Tensor
    positions: Tensor
    context: Placing
    prefix_context: Placing
    suffix_context: Placing
    parting: Parting | None = None

    @cached_property
    def first(self) -> Tensor | None:
        """(T, 3·d) queries, keys and values of the suffixes in the first block, where no context is among them.

        On a GPU None: there the product of all rows is as fast as a copy of these to behind the prefix's.
        """
        if self.suffix_context.anywhere or not self.words.is_cpu:
            return None
        with torch.inference_mode(False), torch.no_grad():
            n_prefix = self.part.n_prefix
            return first_block(self.words[n_prefix:] + self.positions[n_prefix:], self.part.weights)

    def prefix(self) -> Part:
        """The prefix alone."""
        return Part(self.part.weights, self.part.n_prefix, self.part.offsets[:1])


@dataclass(frozen=True)
class EncodePlan:
    """Which prompts are encoded, and how.

    Attributes:
        prompts: all of them.
        differentiable: whether to keep what a backward needs.
        unit: whether the features are divided by their norms.
        chunks: empty to compute all classes at once.
        share: where several ranks share the classes, of which `prompts` are this one's; or None.
    """

    prompts: Prompts
    differentiable: bool
    unit: bool
    chunks: tuple[Chunk, ...] = ()
    share: ClassShare | None = None

    def parts(self, context: Tensor, of_prefix: Kept) -> Iterator[tuple[Chunk, Part, Tensor, Tensor]]:
        """Each chunk with its part, rows and positions, where the pass over the prefix has kept `of_prefix`."""
        prompts, n_prefix = self.prompts, self.prompts.part.n_prefix
        key_values = [attention.query_key_value()[1] for attention in of_prefix.attentions]
        rows, positions = prompts.suffix_context.into(prompts.words[n_prefix:], context), prompts.positions[n_prefix:]
        for chunk in self.chunks:
            part = Part(prompts.part.weights, 0, chunk.offsets, key_values)
            yield chunk, part, rows[:, chunk.rows], positions[chunk.rows]

    def parted(
        self, parting: Parting, context: Tensor, tokens: Tensor
    ) -> Iterator[tuple[Chunk, tuple[Part, Tensor, Tensor], Tensor, Parting]]:
        """Each chunk with its part, rows and positions, behind the prefix; with its class tokens and parting.

        From the parting on the prefix is each class's own, so a chunk computes it again.
        """
        prompts, n_prefix = self.prompts, self.prompts.part.n_prefix
        rows = prompts.context.into(prompts.words, context)
        for chunk in self.chunks:
            own = slice(n_prefix + chunk.rows.start, n_prefix + chunk.rows.stop)
            part = Part(prompts.part.weights, n_prefix, chunk.offsets)
            of_chunk = torch.cat([rows[:, :n_prefix], rows[:, own]], 1)
            positions = torch.cat([prompts.positions[:n_prefix], prompts.positions[own]])
            own_parting = parting.of_classes(chunk.classes, chunk.rows)
            yield chunk, (part, of_chunk, positions), tokens[chunk.classes], own_parting


def encode(context: Tensor, deep: Tensor | None, plan: EncodePlan) -> Tensor:
    """Features of C prompts for each of G contexts.

    Args:
        context: (G, M, d), or class-specific (G, C, M, d).
        deep: (J, M, d) in the tower's dtype, or None: replaces rows 1 ... M of the prefix before block j = 1 ... J.
            Where the classes part, (C, M, d): the class tokens.
        plan: of which prompts, in which chunks.

    Returns:
        (G, C, D) features, normalised if the plan says so, once differentiable in `context` and `deep`.
    """
    with torch.autocast(context.device.type, enabled=False):
        features, *_ = _Encode.apply(context, deep, plan)
    return features


def results_of(context: Tensor, deep: Tensor | None, plan: EncodePlan) -> list[Tensor]:
    """The features as `encode` gives them, and what `gradients_of` needs; without a graph."""
    with torch.autocast(context.device.type, enabled=False):
        return list(_Encode.forward(context, deep, plan))


def gradients_of(
    cotangent: Tensor, results: Sequence[Tensor], context: Tensor, deep: Tensor | None, plan: EncodePlan
) -> list[Tensor]:
    """The gradients of the context and, if there are any, of the deep prompts."""
    saved = _saved(results, plan)
    return [gradient[0] for gradient in _EncodeBackward.forward(cotangent[None], plan, context, deep, *saved)]


class _Encode(TakesCotangentBatches):
    """The features' norms are part of it, so that the cotangents of a step go through them together, too."""

    @staticmethod
    def forward(context: Tensor, deep: Tensor | None, plan: EncodePlan) -> tuple[Tensor, ...]:
        prompts, kept = plan.prompts, Kept()
        context, deep = _rows_of(context, plan), None if deep is None else _own_deep(deep, plan)
        if plan.chunks and deep is not None and prompts.parting is not None:
            features = _encode_parted(context, deep, plan, prompts.parting)
        elif plan.chunks:
            features = _encode_in_chunks(context, deep, plan, kept)
        else:
            rows = prompts.context.into(prompts.words, context)
            of_backward = kept if plan.differentiable else None
            features = forward(prompts.part, rows, prompts.positions, deep, prompts.first, of_backward, prompts.parting)
        tensors = kept.tensors() if plan.differentiable else []
        if plan.unit:
            norms = torch.linalg.vector_norm(features, dim=-1, keepdim=True).clamp_min_(_LEAST_NORM)
            features = features / norms
            tensors = [norms, *tensors] if plan.differentiable else []
        if plan.share is not None:
            tensors = [features, *tensors] if plan.differentiable and plan.unit else tensors
            features = plan.share.gather(features)
        return features, *tensors

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        *tensors, ctx.plan = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, *_saved(output, ctx.plan))

    @staticmethod
    def vjps(ctx: Any, cotangents: Tensor) -> tuple[Tensor | None, ...]:
        of_context, of_deep, _ = ctx.needs_input_grad
        d_context, *d_deep = _EncodeBackward.apply(cotangents, ctx.plan, *ctx.saved_tensors)
        return d_context if of_context else None, d_deep[0] if of_deep else None, None


def _saved(output: Sequence[Tensor], plan: EncodePlan) -> list[Tensor | None]:
    """The results of a forward that its backward needs."""
    features, *kept = output
    if plan.differentiable and plan.unit and plan.share is not None:
        features, *kept = kept  # those that this rank has encoded
    return [features if plan.unit else None, *kept]


class _EncodeBackward(torch.autograd.Function):
    """The gradients of `_Encode` for K cotangents (K, G, C, D); a batch of them under vmap only makes K larger."""

    @staticmethod
    def forward(cotangents: Tensor, plan: EncodePlan, *saved: Any) -> tuple[Tensor, ...]:
        context, deep, features, *tensors = saved
        prompts, parting = plan.prompts, plan.prompts.parting
        n_deep = None if deep is None or parting is not None else (deep.shape[0], deep.shape[1])
        with torch.autocast(context.device.type, enabled=False):
            if plan.share is not None:
                cotangents = plan.share.own(cotangents)
            if plan.unit:
                norms, *tensors = tensors
                cotangents = _norm_backward(cotangents, features, norms)
            kept = Kept.of(tensors, len(prompts.part.weights.blocks)) if tensors else Kept()
            d_deep: Tensor | None
            if plan.chunks and parting is not None:
                inputs = _rows_of(context, plan), _own_deep(deep, plan)
                d_rows, d_deep = _backward_parted(cotangents, *inputs, plan, parting)
            elif plan.chunks:
                d_rows, d_deep = _backward_in_chunks(cotangents, plan, _rows_of(context, plan), kept, n_deep)
            else:
                of_suffixes = prompts.suffix_context.anywhere
                d_rows, d_deep = backward(prompts.part, cotangents, kept, [], n_deep, of_suffixes, parting)
            own = context if plan.share is None else plan.share.own_context(context)
            gradients = [prompts.context.out_of(d_rows, own)]
            if d_deep is not None:
                gradients.append(d_deep if parting is None else _of_all_classes(d_deep, deep, plan))
        return tuple(gradients if plan.share is None else plan.share.sum(gradients, context))

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
        raise RuntimeError(NO_SECOND_DERIVATIVE)


def _rows_of(context: Tensor, plan: EncodePlan) -> Tensor:
    """(G, M or C·M, d) of what is encoded here, in the dtype of the tower's products."""
    own = context if plan.share is None else plan.share.own_context(context)
    return own.to(plan.prompts.words.dtype).flatten(1, -2)


def _own_deep(deep: Tensor, plan: EncodePlan) -> Tensor:
    """The deep prompts, or the class tokens of the classes that are encoded here."""
    return deep if plan.share is None or plan.prompts.parting is None else deep[plan.share.encoded]


def _of_all_classes(d_tokens: Tensor, tokens: Tensor, plan: EncodePlan) -> Tensor:
    """The gradients (K, C, M, d) of all class tokens: zeros for classes that another rank encodes."""
    if plan.share is None:
        return d_tokens
    of_all = d_tokens.new_zeros(len(d_tokens), *tokens.shape)
    of_all[:, plan.share.encoded] = d_tokens
    return of_all


def _norm_backward(cotangents: Tensor, unit: Tensor, norms: Tensor) -> Tensor:
    """The gradients of features x from those of u = x/‖x‖: (g - u·⟨u,g⟩)/‖x‖."""
    along = (cotangents * unit).sum(-1, keepdim=True)
    return torch.addcmul(cotangents, unit, along, value=-1).div_(norms)


def _encode_in_chunks(context: Tensor, deep: Tensor | None, plan: EncodePlan, kept: Kept) -> Tensor:
    """The prefix is computed once, and `kept`; then each chunk, with the prefix's keys and values."""
    prompts, n_prefix = plan.prompts, plan.prompts.part.n_prefix
    rows = prompts.prefix_context.into(prompts.words[:n_prefix], context)
    forward(prompts.prefix(), rows, prompts.positions[:n_prefix], deep, None, kept)
    features = [forward(part, of_chunk, positions) for _, part, of_chunk, positions in plan.parts(context, kept)]
    return torch.cat(features, 1)


def _backward_in_chunks(
    cotangents: Tensor, plan: EncodePlan, context: Tensor, kept: Kept, n_deep: tuple[int, int] | None
) -> tuple[Tensor, Tensor | None]:
    """Each chunk is computed once more, and differentiated; then the prefix, with what the chunks send back to it."""
    prompts, weights = plan.prompts, plan.prompts.part.weights
    # What the chunks send back is added up in the accumulation dtype.
    shape = (*cotangents.shape[:2], prompts.part.n_prefix, 2 * weights.width)
    d_prefix_key_values = [weights.norm.weight.new_zeros(shape) for _ in weights.blocks]
    of_suffixes = prompts.suffix_context.anywhere
    d_suffixes = []
    for chunk, part, rows, positions in plan.parts(context, kept):
        again = Kept()
        forward(part, rows, positions, kept=again)
        of_chunk = cotangents[:, :, chunk.classes]
        d_suffixes.append(backward(part, of_chunk, again, d_prefix_key_values, None, of_suffixes)[0])
    d_prefix, d_deep = backward(prompts.prefix(), cotangents[:, :, :0], kept, d_prefix_key_values, n_deep, of_suffixes)
    return torch.cat([d_prefix, *d_suffixes], 2), d_deep


def _encode_parted(context: Tensor, tokens: Tensor, plan: EncodePlan, parting: Parting) -> Tensor:
    """Each chunk with the prefix, of which nothing is kept."""
    chunks = plan.parted(parting, context, tokens)
    return torch.cat([forward(*inputs, of_chunk, parting=own) for _, inputs, of_chunk, own in chunks], 1)


def _backward_parted(
    cotangents: Tensor, context: Tensor, tokens: Tensor, plan: EncodePlan, parting: Parting
) -> tuple[Tensor, Tensor]:
    """Each chunk is computed once more, with the prefix, whose gradients are added up."""
    d_prefix: list[Tensor] = []
    d_tokens: list[Tensor] = []
    for chunk, inputs, of_chunk, own in plan.parted(parting, context, tokens):
        kept = Kept()
        forward(*inputs, of_chunk, None, kept, own)
        d_rows, d_own = backward(inputs[0], cotangents[:, :, chunk.classes], kept, [], None, False, own)
        assert d_own is not None
        d_prefix.append(d_rows)
        d_tokens.append(d_own)
    return torch.stack(d_prefix).sum(0), torch.cat(d_tokens, 1)
