"""Causal attention of packed segments that share one prefix, and its gradients.

Backward formulas take K cotangents at once, since prompt tuning differentiates two losses through one tower: K is the
leading size of the gradients. The weights are frozen and have no gradient.
"""

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from prograd_fast.ops.checks import OneDtype
from prograd_fast.ops.common import accumulation_dtype
from prograd_fast.ops.registry import define

# ---- formulas


def shared_prefix_attention(
    query: Tensor,
    key_value: Tensor,
    prefix: Tensor | None,
    leading: int,
    offsets: Tensor,
    heads: int,
    scale: float,
    last: bool,
) -> Tensor:
    """Causal attention of packed segments that all see one prefix, softmax(scale·q·kᵀ)·v in every head.

    G groups hold the same segments with other values. The prefix is either that of another pass, whose keys and values
    are given, or the first L = `leading` rows of each group. Segment n is the rows offsets[n] ... offsets[n+1]-1 behind
    the leading ones. A row of a segment attends to the whole prefix of its group and to its own segment, up to and with
    itself; a leading row to the leading rows up to and with itself.

    Args:
        query: (G, T, d) one for each row, or (G, N, d) the queries of the segments' last rows alone, see `last`.
        key_value: (G, T, 2·d) keys, then values of the rows.
        prefix: (G, P, 2·d) those of a prefix of another pass, P ≥ 0, or None.
        leading: L, which is 0 where `prefix` is given. Without both there is no prefix.
        offsets: (N + 1,) int64, from 0 to T - L, rising; no segment is empty, and there may be none.
        heads: number of heads; head h has the columns h·d/heads ... (h+1)·d/heads-1.
        scale: factor of the scores, 1/√(d/heads) in CLIP.
        last: whether there is one query per segment, that of its last row, and none of the leading rows.

    Returns:
        As `query`.
    """
    parts = _Padded(query, key_value, prefix, leading, offsets, heads, scale, last)
    return parts.packed(parts.weights @ parts.values).to(query.dtype)


def shared_prefix_attention_backward(
    gradient: Tensor,
    query: Tensor,
    key_value: Tensor,
    prefix: Tensor | None,
    leading: int,
    offsets: Tensor,
    heads: int,
    scale: float,
    last: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The gradients of `shared_prefix_attention` for K cotangents.

    With p the weights of a query and e = dO·v of its keys: ds = p·(e - ∑p·e), dq = scale·ds·k, dk = scale·dsᵀ·q,
    dv = pᵀ·dO; those of the prefix are sums over all segments of their group, and over its own queries where its rows
    are the leading ones.

    `gradient` is (K, G, T or N, d), of the result; all other arguments are those of `shared_prefix_attention`.

    Returns:
        The gradients of query (K, G, T or N, d), key_value (K, G, T, 2·d), and prefix (K, G, P, 2·d) or None.
    """
    parts = _Padded(query, key_value, prefix, leading, offsets, heads, scale, last)
    d_query, d_key_value, d_prefix = [], [], []
    for one in gradient:
        d_out = parts.padded(one)
        e = d_out @ parts.values.mT
        ds = parts.weights * (e - (parts.weights * e).sum(-1, keepdim=True)) * scale
        d_query.append(parts.packed(ds @ parts.keys))
        dk, dv = ds.mT @ parts.queries, parts.weights.mT @ d_out
        d_key_value.append(torch.cat([parts.own_rows(dk), parts.own_rows(dv)], -1))
        d_prefix.append(torch.cat([parts.prefix_rows(dk), parts.prefix_rows(dv)], -1))
    return (
        torch.stack(d_query).to(query.dtype),
        torch.stack(d_key_value).to(query.dtype),
        None if prefix is None else torch.stack(d_prefix).to(query.dtype),
    )


class _Padded:
    """The segments filled up to the longest, (G, N, heads, rows, d/heads); what is filled in has weight zero.

    Leading rows are the first segment, which alone sees no prefix.
    """

    def __init__(
        self,
        query: Tensor,
        key_value: Tensor,
        prefix: Tensor | None,
        leading: int,
        offsets: Tensor,
        heads: int,
        scale: float,
        last: bool,
    ) -> None:
        self.heads, self.last, self.leading = heads, last, leading
        shared = key_value[:, :leading] if prefix is None else prefix
        self.n_prefix = shared.shape[1]
        offsets = offsets + leading
        if leading and not last:
            offsets = torch.cat([offsets.new_zeros(1), offsets])
        starts, ends = offsets[:-1, None], offsets[1:, None]
        column = torch.arange(int((ends - starts).max()) if len(starts) else 0, device=offsets.device)
        self.valid = starts + column < ends
        self.index = torch.where(self.valid, starts + column, 0)
        self.queries = self.padded(query)
        own = [half[:, self.index] * self.valid[..., None] for half in key_value.chunk(2, -1)]
        shared_halves = [half[:, None].expand(-1, len(starts), -1, -1) for half in shared.chunk(2, -1)]
        self.keys, self.values = (
            self._by_head(torch.cat(pair, -2).to(accumulation_dtype(query)))
            for pair in zip(shared_halves, own, strict=True)
        )
        own_seen = self.valid[:, None, :]
        if not last:
            own_seen = own_seen & (column[:, None] >= column)
        prefix_seen = (starts >= leading)[..., None].expand(*own_seen.shape[:2], self.n_prefix)
        seen = torch.cat([prefix_seen, own_seen], -1)
        scores = (self.queries @ self.keys.mT * scale).masked_fill(~seen[:, None], -torch.inf)
        self.weights = torch.softmax(scores, -1).nan_to_num(0)  # NaN: a row that is filled in, with nothing to see

    def _by_head(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(-3, -2)

    def padded(self, x: Tensor) -> Tensor:
        """(G, T or N, d) queries or their gradients, by segment and head."""
        x = x.to(accumulation_dtype(x))
        return self._by_head(x[:, :, None] if self.last else x[:, self.index] * self.valid[..., None])

    def packed(self, x: Tensor) -> Tensor:
        """Back to (G, T or N, d)."""
        x = x.transpose(-3, -2).flatten(-2)
        return x[:, :, 0] if self.last else x[:, self.valid]

    def own_rows(self, x: Tensor) -> Tensor:
        """(G, N, heads, prefix and rows, d/heads) gradients of keys or values: those of the rows, (G, T, d)."""
        rows = x[..., self.n_prefix :, :].transpose(-3, -2).flatten(-2)[:, self.valid]
        if self.leading and self.last:
            return torch.cat([self.prefix_rows(x), rows], 1)
        rows[:, : self.leading] += self.prefix_rows(x)[:, : self.leading]
        return rows

    def prefix_rows(self, x: Tensor) -> Tensor:
        """The same gradients of the prefix, (G, P, d)."""
        return x[..., : self.n_prefix, :].sum(1).transpose(-3, -2).flatten(-2)


# ---- operators, all in one dtype but for the int64 offsets
#
# The last dimensions are contiguous; rows and groups may have any stride: queries, keys and values are views of one
# matrix product's result, and so are their gradients. The backward writes all of its results.


def _check_attention(call: dict[str, Any]) -> OneDtype:
    query, key_value, prefix, leading, offsets = (
        call[name] for name in ("query", "key_value", "prefix", "leading", "offsets")
    )
    arguments = OneDtype("query", query, "groups, rows, width")
    groups, _, width = arguments.shape
    _, rows, _ = arguments.sizes("key_value", key_value, "groups, rows, 2 width")
    if prefix is not None:
        _, prefix_rows, _ = arguments.sizes("prefix", prefix, "groups, prefix rows, 2 width")
        arguments.rows("prefix", prefix, (groups, prefix_rows, 2 * width))
    most = rows if prefix is None else 0
    if not 0 <= leading <= most:
        raise ValueError(f"leading: expected 0 ... {most} rows, got {leading}.")
    if offsets.dim() != 1 or not offsets.numel():
        raise ValueError(f"offsets: expected shape (segments + 1,), got {tuple(offsets.shape)}.")
    arguments.integers("offsets", offsets, tuple(offsets.shape))
    if call["heads"] <= 0 or width % call["heads"]:
        raise ValueError(f"heads: expected a divisor of {width}, got {call['heads']}.")
    arguments.rows("query", query, (groups, offsets.numel() - 1 if call["last"] else rows, width))
    arguments.rows("key_value", key_value, (groups, rows, 2 * width))
    return arguments


def _check_offsets(offsets: Tensor, rows: int) -> None:
    """On a CPU; a GPU would have to be waited for."""
    if offsets.is_cpu:
        bounds = offsets.tolist()
        if bounds[0] != 0 or bounds[-1] != rows or any(a >= b for a, b in pairwise(bounds)):
            raise ValueError(f"offsets: expected 0 ... {rows} and no empty segment, got {bounds}.")


def _check_attention_out(call: dict[str, Any]) -> None:
    arguments = _check_attention(call)
    arguments.rows("out", call["out"], arguments.shape, written=True)


def _check_attention_backward(call: dict[str, Any]) -> None:
    arguments = _check_attention(call)
    count, *_ = arguments.sizes("gradient", call["gradient"], "cotangents, groups, rows, width")
    arguments.rows("gradient", call["gradient"], (count, *call["query"].shape))
    if (call["prefix"] is None) != (call["d_prefix"] is None):
        expected, got = ("None" if x is None else "a tensor" for x in (call["prefix"], call["d_prefix"]))
        raise ValueError(f"d_prefix: expected {expected} as for prefix, got {got}.")
    for name in ("query", "key_value", "prefix"):
        if call[name] is not None:
            arguments.rows(f"d_{name}", call[f"d_{name}"], (count, *call[name].shape), written=True)


def _kernel(
    query: Tensor, key_value: Tensor, prefix: Tensor | None, leading: int, offsets: Tensor, *options: Any, out: Tensor
) -> None:
    _check_offsets(offsets, key_value.shape[1] - leading)
    out.copy_(shared_prefix_attention(query, key_value, prefix, leading, offsets, *options))


def _backward_kernel(
    gradient: Tensor,
    query: Tensor,
    key_value: Tensor,
    prefix: Tensor | None,
    leading: int,
    offsets: Tensor,
    *options: Any,
    d_query: Tensor,
    d_key_value: Tensor,
    d_prefix: Tensor | None,
) -> None:
    _check_offsets(offsets, key_value.shape[1] - leading)
    results = shared_prefix_attention_backward(gradient, query, key_value, prefix, leading, offsets, *options)
    for out, result in zip((d_query, d_key_value, d_prefix), results, strict=True):
        if out is not None and result is not None:
            out.copy_(result)


define(
    "shared_prefix_attention_out(Tensor query, Tensor key_value, Tensor? prefix, int leading, Tensor offsets, "
    "int heads, float scale, bool last, *, Tensor(a!) out) -> ()",
    reference=_kernel,
    check=_check_attention_out,
)
define(
    "shared_prefix_attention_backward_out(Tensor gradient, Tensor query, Tensor key_value, Tensor? prefix, "
    "int leading, Tensor offsets, int heads, float scale, bool last, *, Tensor(a!) d_query, Tensor(b!) d_key_value, "
    "Tensor(c!)? d_prefix) -> ()",
    reference=_backward_kernel,
    check=_check_attention_backward,
)
