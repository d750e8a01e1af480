"""A causal text tower over packed prompts: every distinct row once, and one backward for several cotangents.

Rows are (G, P + T, d): G groups hold the same prompts with other contexts; the P rows of the prefix stand before the T
rows of the suffixes. In each block the prefix attends to itself, a suffix to the prefix and to itself. Of the last
block only keys and values are needed of all rows; the rest is done for the ends of text alone.

The backward is written out, since the weights are frozen: it needs no more than the residual stream before each norm,
queries, keys, values and what goes into the GELU, 9·d numbers for each row and block; and it takes K cotangents at
once, whose matrix products are then one product. Where even 9·d numbers are too many, the suffixes are computed in
chunks of classes, and once more for the backward. The prefix's keys and values are kept, so that chunks change nothing
but the order of sums.

Everything is computed in the tower's dtype, or in autocast's; norms, GELU, scores, softmax and all sums in float32
(float64 in float64). On the 12 blocks of CLIP's tower with random weights, 20 ImageNet classes, features and gradients
differ from float64, over their largest magnitude, by 2e-6 in float32, 2e-2 in bfloat16 and under bfloat16 autocast, and
2e-3 in float16; `tests/clip/test_packed.py` holds a smaller tower to the bounds of `tests/tolerances.py`.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from prograd_fast.clip.linear import Linear
from prograd_fast.clip.tower_weights import Block, Norm, Weights

KEPT = 9  # numbers that are kept for the backward, per row and block, in units of d
# The MLP takes so many rows at a time that its hidden layer, 4·d wide, stays in the caches between its products.
_MLP_ROWS = 512


@dataclass(frozen=True)
class Chunk:
    """Some of the classes.

    Attributes:
        classes: which.
        rows: theirs among the suffixes.
        offsets: (their number + 1,) int64, from 0.
    """

    classes: slice
    rows: slice
    offsets: Tensor


@dataclass(frozen=True)
class Plan:
    """How the rows are computed.

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

    weights: Weights
    offsets: Tensor
    prefix_positions: Tensor
    suffix_positions: Tensor
    differentiable: bool
    chunks: tuple[Chunk, ...] = ()
    first: Tensor | None = None


def encode(prefix: Tensor, suffixes: Tensor, deep: Tensor | None, plan: Plan) -> Tensor:
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


def first_block(rows: Tensor, weights: Weights) -> Tensor:
    """Queries, keys and values (T, 3·d) of rows (T, d), positions included, in the first block: `Plan.first`."""
    block = weights.blocks[0]
    _, normed, _ = _add_norm(rows, torch.zeros_like(rows), block.norm_1)
    return block.qkv(normed)


class _Encode(torch.autograd.Function):
    takes_cotangent_batches = True  # under vmap its backward is one call: `prograd_fast.optim.one_backward`

    @staticmethod
    def forward(prefix: Tensor, suffixes: Tensor, deep: Tensor | None, plan: Plan) -> tuple[Tensor, ...]:
        kept: list[Tensor] | None = [] if plan.differentiable else None
        if not plan.chunks:
            rows = torch.cat([prefix, suffixes.expand(len(prefix), -1, -1)], 1)
            positions = torch.cat([plan.prefix_positions, plan.suffix_positions])
            features = _together(plan, prefix).forward(rows, positions, deep, plan.first, kept)
            return (features, *(kept or ()))
        kept = []  # of the prefix alone; the chunks need its keys and values
        _prefix_alone(plan, prefix).forward(prefix, plan.prefix_positions, deep, None, kept)
        parts = [one.forward(rows, positions) for _, one, rows, positions in _chunks(plan, prefix, suffixes, kept)]
        return (torch.cat(parts, 1), *(kept if plan.differentiable else ()))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        *tensors, ctx.plan = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, *output[1:])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        if gradients[0] is None:
            return None, None, None, None
        _, of_suffixes, of_deep, _ = ctx.needs_input_grad
        results = _Backward.apply(gradients[0][None], ctx.plan, of_suffixes, *ctx.saved_tensors)
        d_prefix, d_suffixes, d_deep = (d[0] for d in results)
        return d_prefix, d_suffixes if of_suffixes else None, d_deep if of_deep else None, None


class _Backward(torch.autograd.Function):
    """The gradients of `_Encode` for K cotangents (K, G, C, D); a batch of them under vmap only makes K larger."""

    @staticmethod
    def forward(cotangents: Tensor, plan: Plan, of_suffixes: bool, *saved: Tensor) -> tuple[Tensor, ...]:
        prefix, suffixes, deep, *kept = saved
        n_prefix = prefix.shape[1]
        n_deep = (0, 0) if deep is None else (deep.shape[0], deep.shape[1])
        with torch.autocast(prefix.device.type, enabled=False):
            if not plan.chunks:
                d_rows, d_deep = _together(plan, prefix).backward(cotangents, kept, [], n_deep, of_suffixes)
                return d_rows[:, :, :n_prefix].clone(), d_rows[:, :, n_prefix:].clone(), d_deep
            # What the chunks send back to the prefix is added up in the accumulation dtype.
            shape = (*cotangents.shape[:2], n_prefix, 2 * plan.weights.width)
            d_given = [plan.weights.norm.weight.new_zeros(shape) for _ in plan.weights.blocks]
            parts = []
            for chunk, one, rows, positions in _chunks(plan, prefix, suffixes, kept):
                again: list[Tensor] = []
                one.forward(rows, positions, kept=again)
                parts.append(one.backward(cotangents[:, :, chunk.classes], again, d_given, (0, 0), of_suffixes)[0])
            alone = _prefix_alone(plan, prefix)
            d_prefix, d_deep = alone.backward(cotangents[:, :, :0], list(kept), d_given, n_deep, of_suffixes)
            return d_prefix, torch.cat(parts, 2), d_deep

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
        results = _Backward.apply(batch.flatten(0, 1), *others)
        return tuple(d.unflatten(0, batch.shape[:2]) for d in results), (0,) * len(results)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> None:
        raise RuntimeError(
            "class_features: expected to be differentiated once, got a second derivative, which the packed text "
            "tower does not have."
        )


def _together(plan: Plan, prefix: Tensor) -> "_Pass":
    return _Pass(plan.weights, prefix.shape[1], plan.offsets)


def _prefix_alone(plan: Plan, prefix: Tensor) -> "_Pass":
    return _Pass(plan.weights, prefix.shape[1], plan.offsets[:1])


def _chunks(
    plan: Plan, prefix: Tensor, suffixes: Tensor, kept: Sequence[Tensor]
) -> Iterator[tuple[Chunk, "_Pass", Tensor, Tensor]]:
    """Each chunk with its pass, rows and positions. `kept` is what the pass over the prefix has kept."""
    d, of_prefix = plan.weights.width, prefix.shape[0] * prefix.shape[1]
    a_block = 5 + len(range(0, of_prefix, _MLP_ROWS))  # tensors that are kept of it; the third has keys and values
    given = [both[..., -2 * d :] for both in kept[2::a_block]]
    for chunk in plan.chunks:
        rows = suffixes[..., chunk.rows, :].expand(len(prefix), -1, -1)
        yield chunk, _Pass(plan.weights, 0, chunk.offsets, given), rows, plan.suffix_positions[chunk.rows]


class _Pass:
    """One way through the blocks.

    Args:
        weights: of the tower.
        n_prefix: the number of rows of the prefix that lead each group; 0 where they were computed before.
        offsets: (N + 1,) of the suffixes that follow, from 0; N may be 0.
        given: without own rows of the prefix: its keys and values (G, P, 2·d) in each block.
    """

    def __init__(self, weights: Weights, n_prefix: int, offsets: Tensor, given: Sequence[Tensor] = ()) -> None:
        self.weights = weights
        self.n_prefix = n_prefix
        self.offsets = offsets
        self.given = given
        self.ends = n_prefix + offsets[1:] - 1
        self.whole_prefix = torch.arange(2, device=offsets.device) * n_prefix  # the offsets of one segment

    def forward(
        self,
        rows: Tensor,
        positions: Tensor,
        deep: Tensor | None = None,
        first: Tensor | None = None,
        kept: list[Tensor] | None = None,
    ) -> Tensor:
        """(G, N, D) features of rows (G, R, d); `kept` collects what the backward needs."""
        w, groups = self.weights, len(rows)

        def keep(*tensors: Tensor) -> None:
            if kept is not None:
                kept.extend(tensors)

        total, branch = rows.flatten(0, 1), positions.expand_as(rows).flatten(0, 1)
        for i, block in enumerate(w.blocks):
            last = block is w.blocks[-1]
            total, normed, statistics = _add_norm(total, branch, block.norm_1)
            if deep is not None and 1 <= i <= len(deep):
                self._replace_context(groups, deep[i - 1], block.norm_1, total, normed, statistics)
            if last:
                key_value = w.key_value(normed).unflatten(0, (groups, -1))
                keep(total, statistics, key_value)
                if not len(self.ends):
                    return rows.new_empty(groups, 0, w.features)
                at_ends = normed.unflatten(0, (groups, -1))[:, self.ends]
                query = w.query(at_ends)
                keep(query)
                total = total.unflatten(0, (groups, -1))[:, self.ends].flatten(0, 1)
            else:
                qkv = self._qkv(normed.unflatten(0, (groups, -1)), block.qkv, first if i == 0 else None)
                keep(total, statistics, qkv)
                query, key_value = qkv[..., : w.width], qkv[..., w.width :]
            attended = self._attend(query, key_value, i, last).flatten(0, 1)
            total, normed, statistics = _add_norm(total, block.out(attended), block.norm_2)
            keep(total, statistics)
            branch = _joined([self._mlp(part, block, keep) for part in normed.split(_MLP_ROWS)], 0)
        total, normed, statistics = _add_norm(total, branch, w.norm)
        keep(total, statistics)
        features = normed if w.projection is None else w.projection(normed)
        return features.unflatten(0, (groups, -1))

    def backward(
        self, cotangents: Tensor, kept: list[Tensor], d_given: list[Tensor], n_deep: tuple[int, int], of_suffixes: bool
    ) -> tuple[Tensor, Tensor]:
        """The gradients of rows and deep prompts.

        Args:
            cotangents: (K, G, N, D).
            kept: by `forward`; is used up.
            d_given: (K, G, P, 2·d) of the prefix's keys and values in each block: a pass without own prefix adds to
                them, the pass over the prefix alone takes them, for a pass over both the list is empty.
            n_deep: number J of deep prompts, and their rows M.
            of_suffixes: whether the rows of the suffixes need a gradient.

        Returns:
            (K, G, R, d), R only the prefix's rows unless `of_suffixes`, and (K, J, M, d).
        """
        w, n_prefix, d = self.weights, self.n_prefix, self.weights.width
        n, groups = cotangents.shape[:2]
        d_deep = cotangents.new_zeros(n, *n_deep, d)
        d_total = cotangents.new_zeros(n, groups * len(self.ends), d)
        if len(self.ends):
            statistics, total = kept.pop(), kept.pop()
            d_features = cotangents.flatten(1, 2)
            d_normed = d_features if w.projection is None else w.projection.backward(d_features)
            _norm_backward(d_total, d_normed, total, statistics, w.norm)
        d_qkv: Tensor | None = None  # one for all blocks: fresh memory of its size costs more than what is put there
        for i in reversed(range(len(w.blocks))):
            block, last = w.blocks[i], i == len(w.blocks) - 1
            if len(self.ends) or not last:
                parts = [self._mlp_backward(part, kept.pop(), block) for part in d_total.split(_MLP_ROWS, 1)[::-1]]
                statistics, total = kept.pop(), kept.pop()
                _norm_backward(d_total, _joined(parts[::-1], 1), total, statistics, block.norm_2)
            d_attended = block.out.backward(d_total).unflatten(1, (groups, -1))
            rows = slice(None) if i or of_suffixes else slice(n_prefix)
            if last:
                query = kept.pop() if len(self.ends) else d_attended[0]
                key_value = kept.pop()
                d_query = torch.empty_like(d_attended)
                d_key_value = key_value.new_empty(n, *key_value.shape)
                self._attention_backward(d_attended, query, key_value, i, d_query, d_key_value, d_given)
                d_normed = w.key_value.backward(d_key_value)
                d_normed.index_add_(2, self.ends, w.query.backward(d_query))
                d_total = torch.zeros_like(d_normed).index_copy_(2, self.ends, d_total.unflatten(1, (groups, -1)))
                d_normed, d_total = d_normed[:, :, rows], d_total[:, :, rows]
            else:
                qkv = kept.pop()
                d_qkv = qkv.new_empty(n, *qkv.shape) if d_qkv is None else d_qkv
                views = (qkv[..., :d], qkv[..., d:], i, d_qkv[..., :d], d_qkv[..., d:])
                self._attention_backward(d_attended, *views, d_given)
                d_normed = block.qkv.backward(d_qkv[:, :, rows])
                d_total = d_total.unflatten(1, (groups, -1))[:, :, rows]
            statistics, total = (
                x.unflatten(0, (groups, -1))[:, rows].flatten(0, 1).contiguous() for x in (kept.pop(), kept.pop())
            )
            d_total = d_total.flatten(1, 2).contiguous()
            _norm_backward(d_total, d_normed.flatten(1, 2).contiguous(), total, statistics, block.norm_1)
            if 1 <= i <= n_deep[0]:
                d_context = d_total.unflatten(1, (groups, -1))[:, :, 1 : 1 + n_deep[1]]
                d_deep[:, i - 1] = d_context.sum(1)
                d_context.zero_()
        return d_total.unflatten(1, (groups, -1)), d_deep

    def _mlp(self, normed: Tensor, block: Block, keep: Callable[..., None]) -> Tensor:
        hidden = block.up(normed)
        keep(hidden)
        active = torch.empty_like(hidden)
        torch.ops.prograd_fast.gelu_out(hidden, self.weights.approximate, out=active)
        return block.down(active)

    def _mlp_backward(self, d_branch: Tensor, hidden: Tensor, block: Block) -> Tensor:
        d_hidden = block.down.backward(d_branch)
        torch.ops.prograd_fast.gelu_backward_(d_hidden, hidden, self.weights.approximate)
        return block.up.backward(d_hidden)

    def _qkv(self, normed: Tensor, qkv: Linear, known: Tensor | None) -> Tensor:
        if known is None:
            return qkv(normed)
        return torch.cat([qkv(normed[:, : self.n_prefix]), known.expand(len(normed), -1, -1)], 1)

    def _replace_context(
        self, groups: int, deep: Tensor, norm: Norm, total: Tensor, normed: Tensor, statistics: Tensor
    ) -> None:
        replaced = _add_norm(deep, torch.zeros_like(deep), norm)
        for x, y in zip((total, normed, statistics), replaced, strict=True):
            x.unflatten(0, (groups, -1))[:, 1 : 1 + len(deep)] = y

    def _attend(self, query: Tensor, key_value: Tensor, i: int, last: bool) -> Tensor:
        """Every query's mixture of values, as `query`. In the last block there are no queries of the prefix."""
        w, n_prefix = self.weights, self.n_prefix
        attention = torch.ops.prograd_fast.shared_prefix_attention_out
        attended = query.new_empty(query.shape)
        shared = key_value[:, :n_prefix] if n_prefix else self.given[i]
        first = 0 if last else n_prefix
        if first:
            own = (query[:, :first], key_value[:, :first], key_value[:, :0])
            attention(*own, self.whole_prefix, w.heads, w.scale, False, out=attended[:, :first])
        if len(self.ends):
            suffixes = (query[:, first:], key_value[:, n_prefix:], shared)
            attention(*suffixes, self.offsets, w.heads, w.scale, last, out=attended[:, first:])
        return attended

    def _attention_backward(
        self,
        d_attended: Tensor,
        query: Tensor,
        key_value: Tensor,
        i: int,
        d_query: Tensor,
        d_key_value: Tensor,
        d_given: list[Tensor],
    ) -> None:
        """Writes `d_query` and `d_key_value`, and adds to `d_given` unless the prefix is computed here."""
        w, n_prefix, last = self.weights, self.n_prefix, i == len(self.weights.blocks) - 1
        backward = torch.ops.prograd_fast.shared_prefix_attention_backward_out
        shared = key_value[:, :n_prefix] if n_prefix else self.given[i]
        d_shared = shared.new_zeros(len(d_attended), *shared.shape)
        first = 0 if last else n_prefix
        if len(self.ends):
            backward(
                d_attended[:, :, first:],
                query[:, first:],
                key_value[:, n_prefix:],
                shared,
                self.offsets,
                w.heads,
                w.scale,
                last,
                d_query=d_query[:, :, first:],
                d_key_value=d_key_value[:, :, n_prefix:],
                d_prefix=d_shared,
            )
        if not n_prefix:
            d_given[i] += d_shared
            return
        if first:
            backward(
                d_attended[:, :, :first],
                query[:, :first],
                key_value[:, :first],
                key_value[:, :0],
                self.whole_prefix,
                w.heads,
                w.scale,
                False,
                d_query=d_query[:, :, :first],
                d_key_value=d_key_value[:, :, :first],
                d_prefix=d_shared[:, :, :0],
            )
            d_key_value[:, :, :n_prefix] += d_shared
        else:
            d_key_value[:, :, :n_prefix] = d_shared
        if d_given:
            d_key_value[:, :, :n_prefix] += d_given[i]


def _joined(parts: list[Tensor], dim: int) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


def _add_norm(x: Tensor, branch: Tensor, norm: Norm) -> tuple[Tensor, Tensor, Tensor]:
    x, branch = x.contiguous(), branch.contiguous()
    total, normed = torch.empty_like(branch), torch.empty_like(branch)
    statistics = norm.weight.new_empty(len(branch), 2)
    torch.ops.prograd_fast.add_layer_norm_out(
        x, branch, norm.weight, norm.bias, norm.eps, total=total, normed=normed, statistics=statistics
    )
    return total, normed, statistics


def _norm_backward(d_total: Tensor, d_normed: Tensor, total: Tensor, statistics: Tensor, norm: Norm) -> None:
    torch.ops.prograd_fast.layer_norm_backward_(d_total, d_normed, total, statistics, norm.weight)
