"""The operators of the prompt encoder between its matrix products: attention with a shared prefix, norm, GELU."""

from torch import Tensor

from prograd_fast.ops.registry import define
from prograd_fast.reference import transformer as reference


def _shared_prefix_attention_out(
    query: Tensor,
    key_value: Tensor,
    prefix: Tensor,
    offsets: Tensor,
    heads: int,
    scale: float,
    last: bool,
    *,
    out: Tensor,
) -> None:
    out.copy_(reference.shared_prefix_attention(query, key_value, prefix, offsets, heads, scale, last))


def _shared_prefix_attention_backward_out(
    gradient: Tensor,
    query: Tensor,
    key_value: Tensor,
    prefix: Tensor,
    offsets: Tensor,
    heads: int,
    scale: float,
    last: bool,
    *,
    d_query: Tensor,
    d_key_value: Tensor,
    d_prefix: Tensor,
) -> None:
    results = reference.shared_prefix_attention_backward(
        gradient, query, key_value, prefix, offsets, heads, scale, last
    )
    for out, result in zip((d_query, d_key_value, d_prefix), results, strict=True):
        out.copy_(result)


def _add_layer_norm_out(
    x: Tensor,
    branch: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    *,
    total: Tensor,
    normed: Tensor,
    statistics: Tensor,
) -> None:
    results = reference.add_layer_norm(x, branch, weight, bias, eps)
    for out, result in zip((total, normed, statistics), results, strict=True):
        out.copy_(result)


def _layer_norm_backward_(d_total: Tensor, d_normed: Tensor, total: Tensor, statistics: Tensor, weight: Tensor) -> None:
    d_total.copy_(reference.layer_norm_backward(d_total, d_normed, total, statistics, weight))


def _gelu_out(x: Tensor, approximate: int, *, out: Tensor) -> None:
    out.copy_(reference.gelu(x, reference.APPROXIMATIONS[approximate]))


def _gelu_backward_(gradient: Tensor, x: Tensor, approximate: int) -> None:
    gradient.copy_(reference.gelu_backward(gradient, x, reference.APPROXIMATIONS[approximate]))


define(
    "shared_prefix_attention_out(Tensor query, Tensor key_value, Tensor prefix, Tensor offsets, int heads, "
    "float scale, bool last, *, Tensor(a!) out) -> ()",
    reference=_shared_prefix_attention_out,
)
define(
    "shared_prefix_attention_backward_out(Tensor gradient, Tensor query, Tensor key_value, Tensor prefix, "
    "Tensor offsets, int heads, float scale, bool last, *, Tensor(a!) d_query, Tensor(b!) d_key_value, "
    "Tensor(c!) d_prefix) -> ()",
    reference=_shared_prefix_attention_backward_out,
)
define(
    "add_layer_norm_out(Tensor x, Tensor branch, Tensor weight, Tensor bias, float eps, *, Tensor(a!) total, "
    "Tensor(b!) normed, Tensor(c!) statistics) -> ()",
    reference=_add_layer_norm_out,
)
define(
    "layer_norm_backward_(Tensor(a!) d_total, Tensor d_normed, Tensor total, Tensor statistics, Tensor weight) -> ()",
    reference=_layer_norm_backward_,
)
define("gelu_out(Tensor x, int approximate, *, Tensor(a!) out) -> ()", reference=_gelu_out)
define("gelu_backward_(Tensor(a!) gradient, Tensor x, int approximate) -> ()", reference=_gelu_backward_)
