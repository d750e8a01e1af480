"""Backward of the packed tower: the gradients of its rows for K cotangents at once."""

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from prograd_fast.clip.packed.forward import Kept, KeptAttention, KeptMLP, KeptNorm, Part, Parting, mlp_rows
from prograd_fast.clip.packed.weights import Block, Norm


def backward(
    part: Part,
    cotangents: Tensor,
    kept: Kept,
    d_prefix_key_values: Sequence[Tensor],
    n_deep: tuple[int, int] | None,
    of_suffixes: bool,
    parting: Parting | None = None,
) -> tuple[Tensor, Tensor | None]:
    """The gradients of rows and deep prompts.

    Args:
        part: which rows these are.
        cotangents: (K, G, N, D).
        kept: by `forward`; is used up.
        d_prefix_key_values: (K, G, P, 2·d) of the prefix's keys and values in each block: a part without own prefix
            adds to them, the prefix alone takes them, for a part with both there are none.
        n_deep: number J of deep prompts, and their rows M; None without any.
        of_suffixes: whether the rows of the suffixes need a gradient.
        parting: where the classes got tokens of their own; None: nowhere.

    Returns:
        (K, G, R, d), R only the prefix's rows unless `of_suffixes`; and (K, J, M, d), of class tokens (K, N, M, d), or
        None.
    """
    weights, d, before = part.weights, part.weights.width, part
    part = part if parting is None else parting.part
    n, groups, n_ends, _ = cotangents.shape
    # the gradients of the residual stream: of the ends of text, and of all rows, where they have none behind their
    # keys and values of the last block
    shapes = (n, groups * n_ends, d), (n, *kept.attentions[-1].qkv[-1].shape[:2], d)
    zeros = cotangents.new_zeros(sum(map(prod, shapes)))
    d_total, d_all = (x.view(shape) for x, shape in zip(zeros.split([*map(prod, shapes)]), shapes, strict=True))
    d_features, projection = cotangents.flatten(1, 2), weights.projection
    d_normed = d_features.contiguous() if projection is None else projection.backward(d_features)
    assert kept.norm is not None
    _norm_backward(d_total, d_normed, kept.norm, weights.norm)
    d_deep = None if n_deep is None else cotangents.new_zeros(n, *n_deep, d)
    d_qkv: Tensor | None = None  # one for all blocks: fresh memory of its size costs more than what is put there
    for i in reversed(range(len(weights.blocks))):
        block, last = weights.blocks[i], i == len(weights.blocks) - 1
        _mlp_backward(d_total, kept.mlps.pop(), block, weights.approximate)
        d_attended = block.out.backward(d_total).unflatten(1, (groups, -1))
        attention = kept.attentions.pop()
        rows = slice(None) if i or of_suffixes else slice(part.n_prefix)
        if last:
            d_query = torch.empty_like(d_attended)
            d_key_value = d_attended.new_empty(n, *attention.qkv[-1].shape)
            _attention_backward(part, i, d_attended, attention, d_query, d_key_value, d_prefix_key_values)
            d_normed = weights.key_value.backward(d_key_value)
            d_normed.index_add_(2, part.ends, weights.query.backward(d_query))
            d_total = d_all.index_copy_(2, part.ends, d_total.unflatten(1, (groups, -1)))
            d_normed, d_total = d_normed[:, :, rows], d_total[:, :, rows]
        else:
            if d_qkv is None:
                d_qkv = d_attended.new_empty(*d_attended.shape[:-1], 3 * d)
            _attention_backward(part, i, d_attended, attention, d_qkv[..., :d], d_qkv[..., d:], d_prefix_key_values)
            d_normed = block.qkv.backward(d_qkv[:, :, rows])
            d_total = d_total.unflatten(1, (groups, -1))[:, :, rows]
        norm = KeptNorm(*(x.unflatten(0, (groups, -1))[:, rows].flatten(0, 1).contiguous() for x in attention.norm))
        d_total = d_total.flatten(1, 2).contiguous()
        _norm_backward(d_total, d_normed.flatten(1, 2).contiguous(), norm, block.norm_1)
        if n_deep is not None and 1 <= i <= n_deep[0]:
            assert d_deep is not None
            d_context = d_total.unflatten(1, (groups, -1))[:, :, 1 : 1 + d_deep.shape[2]]
            d_deep[:, i - 1] = d_context.sum(1)
            d_context.zero_()
        if parting is not None and i == parting.block:
            n_rows = kept.attentions[-1].qkv[-1].shape[1]
            d_rows, d_deep = parting.join_gradients(d_total.unflatten(1, (groups, -1)), n_rows)
            part, d_total, d_qkv = before, d_rows.flatten(1, 2), None
    return d_total.unflatten(1, (groups, -1)), d_deep


def _mlp_backward(d_total: Tensor, kept: KeptMLP, block: Block, approximate: int) -> None:
    """Adds to `d_total` (K, rows, d) what comes back through the MLP."""
    parts = d_total.split(mlp_rows(d_total), 1)[::-1]
    pieces = [_mlp_piece(d, kept.hidden.pop(), block, approximate) for d in parts]
    d_normed = pieces[0] if len(pieces) == 1 else torch.cat(pieces[::-1], 1)
    _norm_backward(d_total, d_normed, kept.norm, block.norm_2)


def _mlp_piece(d_branch: Tensor, hidden: Tensor, block: Block, approximate: int) -> Tensor:
    return block.up.backward(block.down.backward_with_gelu(d_branch, hidden, approximate))


def _attention_backward(
    part: Part,
    i: int,
    d_attended: Tensor,
    kept: KeptAttention,
    d_query: Tensor,
    d_key_value: Tensor,
    d_prefix_key_values: Sequence[Tensor],
) -> None:
    """Writes `d_query` and `d_key_value`, and adds to `d_prefix_key_values` unless the prefix is computed here."""
    weights, n_prefix, last = part.weights, part.n_prefix, i == len(part.weights.blocks) - 1
    given = part.given_prefix(i)
    d_prefix = None if given is None else given.new_empty(len(d_attended), *given.shape)
    torch.ops.prograd_fast.shared_prefix_attention_backward_out(
        d_attended,
        *kept.query_key_value(),
        given,
        n_prefix,
        part.offsets,
        weights.heads,
        weights.scale,
        last,
        d_query=d_query,
        d_key_value=d_key_value,
        d_prefix=d_prefix,
    )
    if d_prefix is not None:
        d_prefix_key_values[i].add_(d_prefix)
    elif d_prefix_key_values:
        d_key_value[:, :, :n_prefix] += d_prefix_key_values[i]


def _norm_backward(d_total: Tensor, d_normed: Tensor, kept: KeptNorm, norm: Norm) -> None:
    """Adds to `d_total` what comes back through a norm."""
    torch.ops.prograd_fast.layer_norm_backward_(d_total, d_normed, *kept, norm.weight)
