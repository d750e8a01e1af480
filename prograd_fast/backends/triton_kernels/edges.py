"""Sums along the edges of a graph: programs own a node and go over its edges, sorted by that end.

1. `edge_shares`: a block of rows for each graph: the softmax over each row's edges.
2. `edge_sum`: a program for each receiver and block of features.
   `edge_backward`: a program for each sender: gradients of its features, and of each edge's weight;
   `edge_logits`: a program for each row: through the softmax, and over the samples of one graph.

An edge to no node has a weight of NaN.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from prograd_fast.backends.triton_kernels.launch import into_contiguous, on_device
from prograd_fast.backends.triton_kernels.segments import sorted_ends

ROWS = 32  # of a program of the softmax
FEATURES = 1024  # of a program of the sum
SAMPLES = 32  # that a program adds up at a time


@triton.jit
def is_node(node, n_nodes):
    """Whether there is such a node."""
    return (node >= 0) & (node < n_nodes)


@triton.jit
def logit_at(logits, order, k, end, acc: tl.constexpr):
    """Edge number k of each row's, and its logit; -inf behind the row's last."""
    edge = tl.load(order + k, mask=k < end, other=0).to(tl.int64)
    return edge, tl.load(logits + edge, mask=k < end, other=float("-inf")).to(acc)


@triton.jit(do_not_specialize=["n_nodes", "n_edges"])
def edge_shares(logits, order, starts, shares, n_nodes, n_edges, BLOCK: tl.constexpr):
    """Softmax of the logits over the edges of each of a block of rows."""
    acc: tl.constexpr = shares.dtype.element_ty
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    graph = tl.program_id(1).to(tl.int64) * n_edges
    begin = tl.load(starts + rows, mask=rows < n_nodes, other=0).to(tl.int64)
    end = tl.load(starts + rows + 1, mask=rows < n_nodes, other=0).to(tl.int64)
    most = tl.max(end - begin, axis=0)
    top, total = tl.full([BLOCK], float("-inf"), acc), tl.zeros([BLOCK], acc)
    for k in range(0, most):
        _, z = logit_at(logits + graph, order, begin + k, end, acc)
        top = tl.where(z > top, z, top)
    for k in range(0, most):
        _, z = logit_at(logits + graph, order, begin + k, end, acc)
        total += tl.where(begin + k < end, tl.exp(z - top), 0.0)
    for k in range(0, most):
        edge, z = logit_at(logits + graph, order, begin + k, end, acc)
        tl.store(shares + graph + edge, tl.exp(z - top) / total, mask=begin + k < end)


@triton.jit(do_not_specialize=["n_nodes", "graph_edges"])
def edge_sum(
    own, other, shares, senders, order, starts, y, n_nodes, graph_edges, n_vectors,
    VECTOR: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The weighted sum of what a node receives, for a block of features."""
    acc: tl.constexpr = shares.dtype.element_ty
    team, width = tl.program_id(0).to(tl.int64), n_vectors * VECTOR
    sample, node = team // n_nodes, team % n_nodes
    features = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = features < width
    total = tl.zeros([BLOCK], acc)
    for k in range(tl.load(starts + node).to(tl.int64), tl.load(starts + node + 1).to(tl.int64)):
        edge = tl.load(order + k).to(tl.int64)
        sender = tl.load(senders + edge).to(tl.int64)
        known, loop = is_node(sender, n_nodes), sender == node
        at = (sample * n_nodes + sender) * width + features
        sent = tl.load(own + at, mask=inside & loop, other=0.0).to(acc)
        sent += tl.load(other + at, mask=inside & known & (sender != node), other=0.0).to(acc)
        share = tl.load(shares + sample * graph_edges + edge).to(acc)
        total += tl.where(known, share, float("nan")) * sent
    tl.store(y + team * width + features, total.to(y.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["n_nodes", "n_edges", "graph_edges"])
def edge_backward(
    gradient, own, other, shares, receivers, order, starts, products, d_own, d_other,
    n_nodes, n_edges, graph_edges, n_vectors, VECTOR: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The gradients of what a node sends, and of the weight of each edge that it sends along."""
    acc: tl.constexpr = shares.dtype.element_ty
    team, width = tl.program_id(0).to(tl.int64), n_vectors * VECTOR
    sample, node = team // n_nodes, team % n_nodes
    features = tl.arange(0, BLOCK)
    inside = features < width
    u = tl.load(own + team * width + features, mask=inside, other=0.0).to(acc)
    v = tl.load(other + team * width + features, mask=inside, other=0.0).to(acc)
    of_own, of_other = tl.zeros([BLOCK], acc), tl.zeros([BLOCK], acc)
    for k in range(tl.load(starts + node).to(tl.int64), tl.load(starts + node + 1).to(tl.int64)):
        edge = tl.load(order + k).to(tl.int64)
        receiver = tl.load(receivers + edge).to(tl.int64)
        known, loop = is_node(receiver, n_nodes), receiver == node
        at = (sample * n_nodes + receiver) * width + features
        g = tl.load(gradient + at, mask=inside & known, other=0.0).to(acc)
        g = tl.where(known, g, float("nan"))
        product = tl.sum(tl.where(inside, g * tl.where(loop, u, v), 0.0), axis=0)
        tl.store(products + sample * n_edges + edge, product)
        weighted = tl.load(shares + sample * graph_edges + edge).to(acc) * g
        of_own += tl.where(loop, weighted, 0.0)
        of_other += tl.where(loop, 0.0, weighted)
    tl.store(d_own + team * width + features, of_own.to(d_own.dtype.element_ty), mask=inside)
    tl.store(d_other + team * width + features, of_other.to(d_other.dtype.element_ty), mask=inside)


@triton.jit
def product_of(products, edge, n_edges, n_samples, acc: tl.constexpr, BLOCK: tl.constexpr):
    """The gradient of an edge's weight, over all samples of its graph."""
    total = tl.zeros([BLOCK], acc)
    for start in range(0, n_samples, BLOCK):
        samples = start + tl.arange(0, BLOCK).to(tl.int64)
        total += tl.load(products + samples * n_edges + edge, mask=samples < n_samples, other=0.0).to(acc)
    return tl.sum(total, axis=0)


@triton.jit(do_not_specialize=["n_edges", "n_samples"])
def edge_logits(products, shares, order, starts, d_logits, n_edges, n_samples, BLOCK: tl.constexpr):
    """The gradients of the logits of one row."""
    acc: tl.constexpr = shares.dtype.element_ty
    row, graph = tl.program_id(0), tl.program_id(1).to(tl.int64) * n_edges
    begin, end = tl.load(starts + row).to(tl.int64), tl.load(starts + row + 1).to(tl.int64)
    of_row = tl.zeros([], acc)
    for k in range(begin, end):
        edge = tl.load(order + k).to(tl.int64)
        share = tl.load(shares + graph + edge).to(acc)
        of_row += share * product_of(products + graph, edge, n_edges, n_samples, acc, BLOCK)
    for k in range(begin, end):
        edge = tl.load(order + k).to(tl.int64)
        share = tl.load(shares + graph + edge).to(acc)
        slope = share * (product_of(products + graph, edge, n_edges, n_samples, acc, BLOCK) - of_row)
        tl.store(d_logits + graph + edge, slope.to(d_logits.dtype.element_ty))


Ends = tuple[Tensor, Tensor]


def _prepared(
    own: Tensor, other: Tensor, logits: Tensor, rows: Tensor, columns: Tensor
) -> tuple[Ends, Ends, Tensor, int]:
    """The edges by row and by column; the weights (graphs, E); how far the next sample's are."""
    n_nodes, n_edges = own.shape[1], len(rows)
    by_row, by_column = sorted_ends(rows, n_nodes), sorted_ends(columns, n_nodes)
    dtype = torch.promote_types(torch.promote_types(own.dtype, other.dtype), logits.dtype)
    logits = logits.unsqueeze(0) if logits.dim() == 1 else logits
    shares = torch.full_like(logits, math.nan, dtype=torch.promote_types(dtype, torch.float32))
    if shares.numel():
        grid = triton.cdiv(n_nodes, ROWS), len(logits)
        edge_shares[grid](logits.contiguous(), *by_row, shares, n_nodes, n_edges, BLOCK=ROWS, num_warps=1)
    return by_row, by_column, shares, n_edges if len(logits) > 1 else 0


@into_contiguous
def edge_softmax_sum_out(
    own: Tensor, other: Tensor, logits: Tensor, rows: Tensor, columns: Tensor, transposed: bool, *, y: Tensor
) -> None:
    """The operator `edge_softmax_sum_out` on Triton: two launches beside the sort, and no value read back."""
    if not own.numel():
        return
    own, other, rows, columns = (x.contiguous() for x in (own, other, rows, columns))
    n_samples, n_nodes, width = own.shape
    vector, block = math.gcd(8, width), min(FEATURES, triton.next_power_of_2(width))
    with on_device(own):
        by_row, by_column, shares, graph_edges = _prepared(own, other, logits, rows, columns)
        senders, ends = (rows, by_column) if transposed else (columns, by_row)
        edge_sum[(n_samples * n_nodes, triton.cdiv(width, block))](
            own, other, shares, senders, *ends, y, n_nodes, graph_edges, width // vector,
            VECTOR=vector, BLOCK=block, num_warps=1 if block <= 256 else 4,
        )  # fmt: skip


@into_contiguous
def edge_softmax_sum_backward_out(
    gradient: Tensor,
    own: Tensor,
    other: Tensor,
    logits: Tensor,
    rows: Tensor,
    columns: Tensor,
    transposed: bool,
    *,
    d_own: Tensor,
    d_other: Tensor,
    d_logits: Tensor,
) -> None:
    """The operator `edge_softmax_sum_backward_out` on Triton: three launches beside the sort."""
    gradient, own, other, rows, columns = (x.contiguous() for x in (gradient, own, other, rows, columns))
    n_samples, n_nodes, width = own.shape
    n_edges, vector = len(rows), math.gcd(8, width)
    block = triton.next_power_of_2(max(1, width))
    with on_device(own):
        by_row, by_column, shares, graph_edges = _prepared(own, other, logits, rows, columns)
        receivers, ends = (columns, by_row) if transposed else (rows, by_column)
        products = torch.full((n_samples, n_edges), math.nan if width else 0.0, dtype=shares.dtype, device=own.device)
        if own.numel():
            edge_backward[(n_samples * n_nodes,)](
                gradient, own, other, shares, receivers, *ends, products, d_own, d_other,
                n_nodes, n_edges, graph_edges, width // vector,
                VECTOR=vector, BLOCK=block, num_warps=1 if block <= 256 else 4,
            )  # fmt: skip
        d_logits.fill_(math.nan)  # of edges to no node
        if n_nodes and d_logits.numel():
            of_graph = 1 if graph_edges else n_samples
            edge_logits[(n_nodes, len(shares))](
                products, shares, *by_row, d_logits, n_edges, of_graph, BLOCK=SAMPLES, num_warps=1
            )


OPERATORS = (edge_softmax_sum_out, edge_softmax_sum_backward_out)
