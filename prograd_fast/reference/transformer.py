"""What a frozen causal text tower computes between its matrix products, forward and backward.

Only gradients with respect to activations: the weights are frozen. Backward formulas take K cotangents at once, since
prompt tuning differentiates two losses through one tower; K is the leading size of the gradients.
"""

from typing import Literal, get_args

import torch
from torch import Tensor

from prograd_fast.reference.losses import accumulation_dtype

Approximate = Literal["none", "tanh", "sigmoid"]
APPROXIMATIONS: tuple[Approximate, ...] = get_args(Approximate)


def gelu(x: Tensor, approximate: Approximate = "none") -> Tensor:
    """x·Φ(x), or an approximation of it (Hendrycks and Gimpel 2016, arXiv:1606.08415).

    Args:
        x: any shape, float.
        approximate: "none": x·(1 + erf(x/√2))/2; "tanh": x·(1 + tanh(√(2/π)·(x + 0.044715·x³)))/2; "sigmoid":
            x·σ(1.702·x), OpenAI CLIP's QuickGELU.

    Returns:
        As `x`.
    """
    u = x.to(accumulation_dtype(x))
    return (u * _gate(u, approximate)).to(x.dtype)


def gelu_backward(gradient: Tensor, x: Tensor, approximate: Approximate = "none") -> Tensor:
    """gradient·gelu'(x).

    Args:
        gradient: (K, *x.shape).
        x: what `gelu` was given.
        approximate: as there.

    Returns:
        As `gradient`.
    """
    u = x.to(accumulation_dtype(x))
    gate = _gate(u, approximate)
    if approximate == "none":
        slope = torch.exp(-u * u / 2) / (2 * torch.pi) ** 0.5
    elif approximate == "tanh":  # of (1 + tanh w)/2 = σ(2w): σ(1-σ)·2·w'
        near = u.clamp(-100, 100)  # the slope is zero long before, and u·u must not overflow
        slope = gate * (1 - gate) * (8 / torch.pi) ** 0.5 * (1 + 3 * 0.044715 * near * near)
    else:
        slope = gate * (1 - gate) * 1.702
    # the slope is exactly zero for large u, and 0 · u stays finite for finite u
    return (gradient.to(u.dtype) * (gate + u * slope)).to(gradient.dtype)


def _gate(u: Tensor, approximate: Approximate) -> Tensor:
    if approximate == "none":
        return 0.5 * (1 + torch.erf(u / 2**0.5))
    if approximate == "tanh":
        return torch.sigmoid((8 / torch.pi) ** 0.5 * (u + 0.044715 * u * u * u))
    return torch.sigmoid(1.702 * u)


def add_layer_norm(
    x: Tensor, branch: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The end of a residual branch and the norm before the next: t = x + branch, (t - mean)·rstd·weight + bias.

    Args:
        x: (R, d) residual stream.
        branch: (R, d) what is added to it, same dtype.
        weight: (d,) in the accumulation dtype (float32; float64 for float64).
        bias: (d,) likewise.
        eps: added to the (biased) variance.

    Returns:
        total (R, d), normed (R, d), both as `x`, and statistics (R, 2): mean and 1/√(variance + eps) of the total as it
        is stored, in the accumulation dtype.
    """
    dtype = accumulation_dtype(x)
    total = (x.to(dtype) + branch.to(dtype)).to(x.dtype)
    t = total.to(dtype)
    mean = t.mean(1)
    rstd = ((t - mean[:, None]).square().mean(1) + eps).rsqrt()
    normed = (t - mean[:, None]) * rstd[:, None] * weight + bias
    return total, normed.to(x.dtype), torch.stack([mean, rstd], 1)


def layer_norm_backward(d_total: Tensor, d_normed: Tensor, total: Tensor, statistics: Tensor, weight: Tensor) -> Tensor:
    """The gradient of `add_layer_norm` in both `x` and `branch`, from those of its results.

    With h = (t - mean)·rstd and u = d_normed·weight: d_total + rstd·(u - mean(u) - h·mean(u·h)).

    Args:
        d_total: (K, R, d) gradients that pass the norm by.
        d_normed: (K, R, d) gradients of the norm's result.
        total: (R, d), `statistics` (R, 2) and `weight` (d,) as in `add_layer_norm`.
        statistics: see there.
        weight: see there.

    Returns:
        (K, R, d), as `d_total`.
    """
    dtype = accumulation_dtype(total)
    mean, rstd = statistics[:, 0, None], statistics[:, 1, None]
    h = (total.to(dtype) - mean) * rstd
    u = d_normed.to(dtype) * weight
    d = rstd * (u - u.mean(2, keepdim=True) - h * (u * h).mean(2, keepdim=True))
    return (d_total.to(dtype) + d).to(d_total.dtype)


def shared_prefix_attention(
    query: Tensor, key_value: Tensor, prefix: Tensor, offsets: Tensor, heads: int, scale: float, last: bool
) -> Tensor:
    """Causal attention of packed segments that all see one prefix, softmax(scale·q·kᵀ)·v in every head.

    G groups hold the same segments with other values. Segment n is the rows offsets[n] ... offsets[n+1]-1 of a group. A
    row attends to the whole prefix of its group and to its own segment, up to and with itself.

    Args:
        query: (G, T, d) one for each row, or (G, N, d) the queries of the segments' last rows alone, see `last`.
        key_value: (G, T, 2·d) keys, then values of the rows.
        prefix: (G, P, 2·d) those of the prefix, P ≥ 0.
        offsets: (N + 1,) int64, from 0 to T, rising; no segment is empty.
        heads: number of heads; head h has the columns h·d/heads ... (h+1)·d/heads-1.
        scale: factor of the scores, 1/√(d/heads) in CLIP.
        last: whether there is one query per segment, that of its last row.

    Returns:
        As `query`.
    """
    parts = _Padded(query, key_value, prefix, offsets, heads, scale, last)
    return parts.packed(parts.weights @ parts.values).to(query.dtype)


def shared_prefix_attention_backward(
    gradient: Tensor,
    query: Tensor,
    key_value: Tensor,
    prefix: Tensor,
    offsets: Tensor,
    heads: int,
    scale: float,
    last: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of `shared_prefix_attention` for K cotangents.

    With p the weights of a query and e = dO·v of its keys: ds = p·(e - ∑p·e), dq = scale·ds·k, dk = scale·dsᵀ·q,
    dv = pᵀ·dO; those of the prefix are sums over all segments of their group.

    `gradient` is (K, G, T or N, d), of the result; all other arguments are those of `shared_prefix_attention`.

    Returns:
        The gradients of query (K, G, T or N, d), key_value (K, G, T, 2·d) and prefix (K, G, P, 2·d).
    """
    parts = _Padded(query, key_value, prefix, offsets, heads, scale, last)
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
        torch.stack(d_prefix).to(query.dtype),
    )


class _Padded:
    """The segments filled up to the longest, (G, N, heads, rows, d/heads); what is filled in has weight zero."""

    def __init__(
        self, query: Tensor, key_value: Tensor, prefix: Tensor, offsets: Tensor, heads: int, scale: float, last: bool
    ) -> None:
        self.heads, self.last, self.n_prefix = heads, last, prefix.shape[1]
        starts, ends = offsets[:-1, None], offsets[1:, None]
        column = torch.arange(int((ends - starts).max()) if len(starts) else 0, device=offsets.device)
        self.valid = starts + column < ends
        self.index = torch.where(self.valid, starts + column, 0)
        self.queries = self.padded(query)
        shared = [half[:, None].expand(-1, len(starts), -1, -1) for half in prefix.chunk(2, -1)]
        own = [half[:, self.index] * self.valid[..., None] for half in key_value.chunk(2, -1)]
        self.keys, self.values = (
            self._by_head(torch.cat(pair, -2).to(accumulation_dtype(query))) for pair in zip(shared, own, strict=True)
        )
        before = column[:, None] >= column  # what a row sees of its own segment
        own_seen = self.valid[:, None, :] & (before if not last else torch.ones_like(before[:1]))
        seen = torch.cat([own_seen.new_ones(*own_seen.shape[:2], self.n_prefix), own_seen], -1)
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
        return x[..., self.n_prefix :, :].transpose(-3, -2).flatten(-2)[:, self.valid]

    def prefix_rows(self, x: Tensor) -> Tensor:
        """Those of the prefix, (G, P, d)."""
        return x[..., : self.n_prefix, :].sum(1).transpose(-3, -2).flatten(-2)
