"""The operators of the prompt encoder between its matrix products: attention with a shared prefix, norm, GELU."""

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from prograd_fast.ops.checks import Arguments, check_memory
from prograd_fast.ops.registry import define
from prograd_fast.reference import transformer as reference


class _OneDtype(Arguments):
    """Arguments of one dtype, read in whole rows or from their first element to their last."""

    def __init__(self, name: str, first: Tensor, what: str | None = None) -> None:
        super().__init__(first)
        self.dtype = first.dtype
        self.shape = tuple(first.shape) if what is None else self.sizes(name, first, what)

    def rows(self, name: str, tensor: Tensor, shape: tuple[int, ...], *, written: bool = False) -> None:
        """Contiguous in the last dimension; any strides in the others."""
        self._alike(name, tensor, shape, self.dtype)
        if tensor.shape[-1] > 1 and tensor.stride(-1) != 1:
            raise ValueError(f"{name}: expected contiguous rows, got strides {tensor.stride()}.")
        if written:
            check_memory(name, tensor)

    def whole(self, name: str, tensor: Tensor, shape: tuple[int, ...], *, wide: bool = False) -> None:
        """Contiguous; in the accumulation dtype if `wide`."""
        self._alike(name, tensor, shape, torch.promote_types(self.dtype, torch.float32) if wide else self.dtype)
        if not tensor.is_contiguous():
            raise ValueError(f"{name}: expected contiguous memory, got strides {tensor.stride()}.")

    def _alike(self, name: str, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        self.floating(name, tensor, shape)
        if tensor.dtype != dtype:
            raise TypeError(f"{name}: expected {dtype}, got {tensor.dtype}.")


def _check_attention(call: dict[str, Any]) -> _OneDtype:
    query, key_value, prefix, offsets = (call[name] for name in ("query", "key_value", "prefix", "offsets"))
    arguments = _OneDtype("query", query, "groups, rows, width")
    groups, _, width = arguments.shape
    _, rows, _ = arguments.sizes("key_value", key_value, "groups, rows, 2 width")
    _, prefix_rows, _ = arguments.sizes("prefix", prefix, "groups, prefix rows, 2 width")
    if offsets.dim() != 1 or not offsets.numel():
        raise ValueError(f"offsets: expected shape (segments + 1,), got {tuple(offsets.shape)}.")
    arguments.integers("offsets", offsets, tuple(offsets.shape))
    if call["heads"] <= 0 or width % call["heads"]:
        raise ValueError(f"heads: expected a divisor of {width}, got {call['heads']}.")
    arguments.rows("query", query, (groups, offsets.numel() - 1 if call["last"] else rows, width))
    arguments.rows("key_value", key_value, (groups, rows, 2 * width))
    arguments.rows("prefix", prefix, (groups, prefix_rows, 2 * width))
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
    for name in ("query", "key_value", "prefix"):
        arguments.rows(f"d_{name}", call[f"d_{name}"], (count, *call[name].shape), written=True)


def _check_add_layer_norm(call: dict[str, Any]) -> None:
    arguments = _OneDtype("x", call["x"], "rows, width")
    rows, width = arguments.shape
    for name in ("x", "branch", "total", "normed"):
        arguments.whole(name, call[name], (rows, width))
    for name in ("weight", "bias"):
        arguments.whole(name, call[name], (width,), wide=True)
    arguments.whole("statistics", call["statistics"], (rows, 2), wide=True)


def _check_layer_norm_backward(call: dict[str, Any]) -> None:
    arguments = _OneDtype("d_total", call["d_total"], "cotangents, rows, width")
    _, rows, width = arguments.shape
    arguments.whole("d_total", call["d_total"], arguments.shape)
    arguments.whole("d_normed", call["d_normed"], arguments.shape)
    arguments.whole("total", call["total"], (rows, width))
    arguments.whole("statistics", call["statistics"], (rows, 2), wide=True)
    arguments.whole("weight", call["weight"], (width,), wide=True)


def _check_gelu_input(call: dict[str, Any]) -> _OneDtype:
    if not 0 <= call["approximate"] < len(reference.APPROXIMATIONS):
        raise ValueError(f"approximate: expected 0, 1 or 2, got {call['approximate']}.")
    arguments = _OneDtype("x", call["x"])
    arguments.whole("x", call["x"], arguments.shape)
    return arguments


def _check_gelu(call: dict[str, Any]) -> None:
    arguments = _check_gelu_input(call)
    arguments.whole("out", call["out"], arguments.shape)


def _check_gelu_backward(call: dict[str, Any]) -> None:
    arguments, gradient = _check_gelu_input(call), call["gradient"]
    if gradient.dim() != len(arguments.shape) + 1:
        raise ValueError(f"gradient: expected {len(arguments.shape) + 1} dimensions, got {gradient.dim()}.")
    arguments.whole("gradient", gradient, (gradient.shape[0], *arguments.shape))


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
    _check_offsets(offsets, key_value.shape[1])
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
    _check_offsets(offsets, key_value.shape[1])
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
    check=_check_attention_out,
)
define(
    "shared_prefix_attention_backward_out(Tensor gradient, Tensor query, Tensor key_value, Tensor prefix, "
    "Tensor offsets, int heads, float scale, bool last, *, Tensor(a!) d_query, Tensor(b!) d_key_value, "
    "Tensor(c!) d_prefix) -> ()",
    reference=_shared_prefix_attention_backward_out,
    check=_check_attention_backward,
)
define(
    "add_layer_norm_out(Tensor x, Tensor branch, Tensor weight, Tensor bias, float eps, *, Tensor(a!) total, "
    "Tensor(b!) normed, Tensor(c!) statistics) -> ()",
    reference=_add_layer_norm_out,
    check=_check_add_layer_norm,
)
define(
    "layer_norm_backward_(Tensor(a!) d_total, Tensor d_normed, Tensor total, Tensor statistics, Tensor weight) -> ()",
    reference=_layer_norm_backward_,
    check=_check_layer_norm_backward,
)
define("gelu_out(Tensor x, int approximate, *, Tensor(a!) out) -> ()", reference=_gelu_out, check=_check_gelu)
define(
    "gelu_backward_(Tensor(a!) gradient, Tensor x, int approximate) -> ()",
    reference=_gelu_backward_,
    check=_check_gelu_backward,
)
