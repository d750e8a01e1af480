"""Shared by all operators: in which dtype they add up, what they reduce, what a conflict test covers, new memory."""

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from prograd_fast.ops.registry import SHORTCUTS

Reduction = Literal["none", "mean", "sum"]
REDUCTIONS: tuple[Reduction, ...] = get_args(Reduction)  # operators take the position
Scope = Literal["tensor", "row", "global"]
SCOPES: tuple[Scope, ...] = get_args(Scope)  # operators take the position

STORAGE = (torch.float64, torch.float32, torch.bfloat16, torch.float16)  # the dtypes that operators read and write


def accumulation_dtype(*tensors: Tensor) -> torch.dtype:
    """Float32, or the widest dtype among the tensors where that is wider."""
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def empty(like: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """`like.new_empty(shape, dtype=dtype)`; on a CPU large results take the memory of earlier ones."""
    shortcut = SHORTCUTS.get("empty")
    if shortcut is None or type(like) is not Tensor or not like.is_cpu:
        return like.new_empty(shape, dtype=dtype)
    result: Tensor = shortcut(like, shape, dtype)
    return result


def empty_like(tensor: Tensor) -> Tensor:
    """As `empty`, of the shape and dtype of a tensor."""
    return empty(tensor, tensor.shape, tensor.dtype)


def reduced(losses: Tensor, weight: Tensor | None, reduction: Reduction) -> Tensor:
    """Losses of single rows or elements times their weights, added up."""
    losses = losses if weight is None else losses * weight.to(losses.dtype)
    match reduction:
        case "none":
            return losses
        case "mean":
            return losses.mean()
        case "sum":
            return losses.sum()
