"""Sums along the edges of a graph whose weights are a softmax over each node's edges; no matrix of nodes by nodes."""

from typing import Any

import torch
from torch import Tensor

from prograd_fast.ops.checks import Arguments, check_devices, check_floating, check_nodes
from prograd_fast.ops.common import accumulation_dtype, empty_like
from prograd_fast.ops.losses import goes_through_formula
from prograd_fast.ops.registry import LIBRARY, define

# ---- formulas


def edge_softmax(logits: Tensor, rows: Tensor, n: int) -> Tensor:
    """Softmax over the edges of each row.

    Args:
        logits: (..., E), one for each edge.
        rows: (E,) int64, the row of each edge.
        n: the number of rows N.

    Returns:
        As `logits`; the weights of a row's edges add up to 1.
    """
    where, room = rows.expand(logits.shape), (*logits.shape[:-1], n)
    largest = logits.new_full(room, -torch.inf).scatter_reduce(-1, where, logits.detach(), "amax")
    weights = (logits - largest.gather(-1, where)).exp()
    return weights / weights.new_zeros(room).scatter_add(-1, where, weights).gather(-1, where)


def edge_softmax_sum_formula(
    own: Tensor, other: Tensor, logits: Tensor, rows: Tensor, columns: Tensor, transposed: bool = False
) -> Tensor:
    """Weighted sums along edges, as `edge_softmax_sum`."""
    u, v, share, loops, receivers, senders = _parts(own, other, logits, rows, columns, transposed)
    y = torch.zeros_like(u)
    for source, which in ((u, loops), (v, ~loops)):
        y = y.index_add(1, receivers[which], share[:, which].unsqueeze(2) * source[:, senders[which]])
    return y.to(own.dtype)


def edge_softmax_sum_backward(
    gradient: Tensor, own: Tensor, other: Tensor, logits: Tensor, rows: Tensor, columns: Tensor, transposed: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients in own, other and logits, as these.

    Of a weight: ⟨gradient of the receiver, what is sent⟩; through the softmax: w·(d - Σ w·d over the row).
    """
    u, v, share, loops, receivers, senders = _parts(own, other, logits, rows, columns, transposed)
    g = gradient.to(u.dtype)
    results, d_share = [], torch.zeros(len(u), *share.shape[1:], dtype=u.dtype, device=u.device)
    for source, which in ((u, loops), (v, ~loops)):
        received, sent = g[:, receivers[which]], source[:, senders[which]]
        weighted = share[:, which].unsqueeze(2) * received
        results.append(torch.zeros_like(source).index_add(1, senders[which], weighted))
        d_share[:, which] = (received * sent).sum(2)
    by_row = share.new_zeros(len(u), u.shape[1]).index_add(1, rows, share * d_share)
    d_logits = share * (d_share - by_row[:, rows])
    if logits.dim() == 1:
        d_logits = d_logits.sum(0)
    return results[0].to(own.dtype), results[1].to(other.dtype), d_logits.to(logits.dtype)


def _parts(
    own: Tensor, other: Tensor, logits: Tensor, rows: Tensor, columns: Tensor, transposed: bool
) -> tuple[Tensor, ...]:
    """Both inputs in the accumulation dtype, weights (1 or B, E), which edges are loops, receivers and senders."""
    dtype = accumulation_dtype(own, other, logits)
    share = edge_softmax(logits.to(dtype), rows, own.shape[1])
    ends = (columns, rows) if transposed else (rows, columns)
    return own.to(dtype), other.to(dtype), share if share.dim() == 2 else share.unsqueeze(0), rows == columns, *ends


# ---- operators
#
# edge_softmax_sum_out           own, other (B, N, F); logits (E,) or (B, E); rows, columns (E,) int64 in 0 ... N - 1;
#                                y as own
# edge_softmax_sum_backward_out  gradient (B, N, F); d_own, d_other, d_logits as these

_INPUTS = "Tensor own, Tensor other, Tensor logits, Tensor rows, Tensor columns, bool transposed"


def _check(call: dict[str, Any]) -> None:
    own, logits = call["own"], call["logits"]
    arguments = Arguments(own)
    shape = arguments.sizes("own", own, "batch, nodes, width")
    arguments.floating("other", call["other"], shape)
    edges = arguments.ends(call["rows"], call["columns"])
    of_logits = edges if logits.dim() == 1 else (*shape[:1], *edges)
    arguments.floating("logits", logits, of_logits)
    if "gradient" in call:
        arguments.floating("gradient", call["gradient"], shape)
    for name, size in (("y", shape), ("d_own", shape), ("d_other", shape), ("d_logits", of_logits)):
        arguments.result(name, call.get(name), size)


def _kernel(*args: Any, y: Tensor) -> None:
    check_nodes(args[3], args[4], args[0].shape[1])
    y.copy_(edge_softmax_sum_formula(*args))


def _backward_kernel(*args: Any, d_own: Tensor, d_other: Tensor, d_logits: Tensor) -> None:
    check_nodes(args[4], args[5], args[1].shape[1])
    for result, value in zip((d_own, d_other, d_logits), edge_softmax_sum_backward(*args), strict=True):
        result.copy_(value)


def _empty(own: Tensor, *others: Any) -> Tensor:
    return empty_like(own)


def _empty_backward(gradient: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
    return tuple(empty_like(x) for x in inputs[:3])


def _edge_softmax_sum(*args: Any) -> Tensor:
    y = _empty(*args)
    torch.ops.prograd_fast.edge_softmax_sum_out(*args, y=y)
    return y


def _edge_softmax_sum_backward(*args: Any) -> tuple[Tensor, ...]:
    results = _empty_backward(*args)
    torch.ops.prograd_fast.edge_softmax_sum_backward_out(
        *args, **dict(zip(("d_own", "d_other", "d_logits"), results, strict=True))
    )
    return results


define(f"edge_softmax_sum_out({_INPUTS}, *, Tensor(a!) y) -> ()", reference=_kernel, check=_check)
define(f"edge_softmax_sum({_INPUTS}) -> Tensor", reference=_edge_softmax_sum, fake=_empty, check=_check)
define(
    f"edge_softmax_sum_backward_out(Tensor gradient, {_INPUTS}, *, Tensor(a!) d_own, Tensor(b!) d_other, "
    "Tensor(c!) d_logits) -> ()",
    reference=_backward_kernel,
    check=_check,
)
define(
    f"edge_softmax_sum_backward(Tensor gradient, {_INPUTS}) -> (Tensor, Tensor, Tensor)",
    reference=_edge_softmax_sum_backward,
    fake=_empty_backward,
    check=_check,
)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.transposed = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    differentiable = torch.is_grad_enabled()  # with create_graph=True
    backward = edge_softmax_sum_backward if differentiable else torch.ops.prograd_fast.edge_softmax_sum_backward
    own, other, logits, rows, columns = ctx.saved_tensors
    return *backward(gradient, own, other, logits, rows, columns, ctx.transposed), None, None, None


def _one_by_one(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Tensor, int]:
    operator = torch.ops.prograd_fast.edge_softmax_sum
    each = (
        [a if d is None else a.select(d, i) for a, d in zip(args, in_dims, strict=True)] for i in range(info.batch_size)
    )
    return torch.stack([operator(*a) for a in each]), 0


torch.library.register_autograd("prograd_fast::edge_softmax_sum", _backward, setup_context=_keep, lib=LIBRARY)
torch.library.register_vmap("prograd_fast::edge_softmax_sum", _one_by_one, lib=LIBRARY)

# ---- function


def edge_softmax_sum(
    own: Tensor, other: Tensor, logits: Tensor, rows: Tensor, columns: Tensor, transposed: bool = False
) -> Tensor:
    """Weighted sum of what each node has from itself and from others, along the edges of a graph.

        w = softmax of the logits over the edges of each row,   y_i = Σ_{e = (i, j)} w_e·(own_i if j = i else other_j)

    Differentiable in own, other and logits, any number of times; the kernels have the first derivative. With own =
    x W₀ and other = x W₁ it is the graph convolution of SemGCN. Source: Zhao et al., arXiv:1904.03345; Lin et al.,
    arXiv:2006.11697.

    Args:
        own: (B, N, F); float64, float32, bfloat16 or float16.
        other: (B, N, F).
        logits: (E,), or (B, E) with weights of each sample's own.
        rows: (E,) int64 in 0 ... N - 1, the receiving node of each edge.
        columns: (E,) int64, the sending node.
        transposed: the sum is over rows instead, with the same weights: y_j = Σ_{e = (i, j)} w_e·(...)_i
            (default: False).

    Returns:
        (B, N, F), as `own`; 0 for a node that has no edge.

    Raises:
        TypeError: something is not floating point, or an index not int64.
        ValueError: shapes or devices do not fit, or (on a CPU) an index is out of range.
    """
    for name, tensor in (("own", own), ("other", other), ("logits", logits)):
        check_floating(name, tensor)
    check_devices(own=own, other=other, logits=logits, rows=rows, columns=columns)
    args = own, other, logits, rows, columns, transposed
    return edge_softmax_sum_formula(*args) if goes_through_formula() else torch.ops.prograd_fast.edge_softmax_sum(*args)
