"""The questions that operators and functions ask of their arguments before anything is read or written.

A wrong call ends with a ValueError or TypeError that names the argument, what was expected and what came. The operators
ask with `Arguments`, and their kernels in C++ ask the same: no kernel reads or writes outside of a tensor, whatever it
is called with. The functions ask more, and say what to do.
"""

from bisect import bisect_left
from collections.abc import Sequence
from itertools import pairwise
from math import inf
from typing import Any

import torch
from torch import Tensor

from prograd_fast.ops.common import REDUCTIONS, STORAGE, Reduction

# ---- of operators


class Arguments:
    """The tensors of one call, all on the device of the first.

    A shape is a tuple of sizes. `size` reads a shape that is free, once the number of dimensions is known to fit.

    Args:
        first: whose device is asked of all.
    """

    def __init__(self, first: Tensor) -> None:
        self.device = first.device

    def sizes(self, name: str, tensor: Tensor, what: str) -> tuple[int, ...]:
        """The shape of a floating-point tensor with a size for each word of `what`, such as "rows, classes"."""
        if tensor.dim() != len(what.split(",")):
            raise ValueError(f"{name}: expected shape ({what}), got {tuple(tensor.shape)}.")
        self.floating(name, tensor, tuple(tensor.shape))
        return tuple(tensor.shape)

    def floating(self, name: str, tensor: Tensor | None, shape: tuple[int, ...]) -> None:
        """A tensor of float64, float32, bfloat16 or float16; None where one may be left out."""
        if tensor is None:
            return
        if tensor.dtype not in STORAGE:
            raise TypeError(f"{name}: expected float64, float32, bfloat16 or float16, got {tensor.dtype}.")
        self._placed(name, tensor, shape)

    def integers(self, name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
        """A tensor of int64."""
        if tensor.dtype != torch.int64:
            raise TypeError(f"{name}: expected int64, got {tensor.dtype}.")
        self._placed(name, tensor, shape)

    def ends(self, rows: Tensor, columns: Tensor) -> tuple[int, ...]:
        """The rows and columns of a graph's edges; their shape."""
        if rows.dim() != 1:
            raise ValueError(f"rows: expected shape (edges,), got {tuple(rows.shape)}.")
        self.integers("rows", rows, tuple(rows.shape))
        self.integers("columns", columns, tuple(rows.shape))
        return tuple(rows.shape)

    def result(self, name: str, tensor: Tensor | None, shape: tuple[int, ...]) -> None:
        """A floating-point tensor to write to; None in a call that makes it."""
        self.floating(name, tensor, shape)
        if tensor is not None:
            check_memory(name, tensor)

    def integer_result(self, name: str, tensor: Tensor | None, shape: tuple[int, ...]) -> None:
        """A tensor of int64 to write to; None in a call that makes it."""
        if tensor is not None:
            self.integers(name, tensor, shape)
            check_memory(name, tensor)

    def same(self, name: str, tensors: Sequence[Tensor], like: Sequence[Tensor], *, written: bool = False) -> None:
        """As many tensors as in another list, each of its partner's shape."""
        if len(tensors) != len(like):
            raise ValueError(f"{name}: expected {len(like)} tensors, got {len(tensors)}.")
        for i, (tensor, partner) in enumerate(zip(tensors, like, strict=True)):
            if tensor is None or partner is None:
                raise TypeError(f"{name}[{i}]: expected a tensor, got None.")
            self.floating(f"{name}[{i}]", tensor, tuple(partner.shape))
            if written:
                check_memory(f"{name}[{i}]", tensor)

    def number(self, name: str, tensor: Tensor | None, *, or_on_the_cpu: bool = False) -> None:
        """One float in a tensor of any shape, or None where it may be left out."""
        if tensor is None:
            return
        if tensor.numel() != 1:
            raise ValueError(f"{name}: expected one element, got shape {tuple(tensor.shape)}.")
        if not (or_on_the_cpu and tensor.device.type == "cpu" and self.device.type != "meta"):
            self.floating(name, tensor, tuple(tensor.shape))
        elif tensor.dtype not in STORAGE:
            raise TypeError(f"{name}: expected a floating-point tensor, got {tensor.dtype}.")

    def _placed(self, name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
        if tensor.layout != torch.strided:
            raise TypeError(f"{name}: expected a dense tensor, got layout {tensor.layout}.")
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name}: expected shape {tuple(shape)}, got {tuple(tensor.shape)}.")
        if tensor.device != self.device:
            raise ValueError(f"{name}: expected device {self.device} as for the others, got {tensor.device}.")


class OneDtype(Arguments):
    """Arguments of one dtype, read in whole rows or from their first element to their last.

    Args:
        name: of the first argument.
        first: whose device and dtype are asked of all.
        what: a word for each of its sizes (default: None, any shape).
    """

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


def check_nodes(rows: Tensor, columns: Tensor, n: int) -> None:
    """ValueError for an edge to a node that is not there; on a GPU nothing looks, since that would wait for it."""
    for name, ends in (("rows", rows), ("columns", columns)):
        if ends.is_cpu and (wrong := ((ends < 0) | (ends >= n)).nonzero()).numel():
            e = int(wrong[0])
            raise ValueError(f"{name}[{e}]: expected a node below {n}, got {int(ends[e])}.")


def check_memory(name: str, written: Tensor) -> None:
    """ValueError where several elements of a tensor that is written to share one place."""
    if any(size > 1 and stride == 0 for size, stride in zip(written.shape, written.stride(), strict=True)):
        raise ValueError(f"{name}: expected a place for each element, got an expanded tensor: call .clone() first.")


def check_apart(name: str, written: Sequence[Tensor], partners: Sequence[Tensor], others: Sequence[Tensor]) -> None:
    """ValueError where tensors that are written to share memory with each other or with what is read.

    Each may be its own partner itself. Where a tensor has gaps, nothing is known.
    """
    places = sorted((*place, i) for i, x in enumerate(written) if (place := _place(x)))
    taken = [y for x, y in pairwise(places) if x[0] == y[0] and x[2] > y[1]]
    pairs = zip(written, partners, strict=True)
    read = [x for own, x in pairs if _place(own) != _place(x) or own.stride() != x.stride()]
    for storage, begin, end in filter(None, map(_place, [*read, *others])):
        behind = bisect_left(places, (storage, end))
        taken += [x for x in places[max(behind - 1, 0) : behind] if x[0] == storage and x[2] > begin]
    if taken:
        raise ValueError(f"{name}[{taken[0][3]}]: expected memory of its own, got some of another tensor's.")


def _place(x: Tensor) -> tuple[Any, ...] | None:
    """The memory of a tensor, its first byte and one past the last; None if it is empty or has gaps."""
    extent = 1 + sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
    if x.numel() == 0 or extent != x.numel():
        return None
    begin = x.storage_offset() * x.element_size()
    return x.untyped_storage()._cdata, begin, begin + x.numel() * x.element_size()


def check_reduction_number(reduction: int) -> Reduction:
    """The name of a reduction's number."""
    if not 0 <= reduction < len(REDUCTIONS):
        raise ValueError(f"reduction: expected 0 (none), 1 (mean) or 2 (sum), got {reduction}.")
    return REDUCTIONS[reduction]


def check_positive(name: str, value: float) -> None:
    """ValueError unless a number is above 0 and finite."""
    if not 0 < value < inf:
        raise ValueError(f"{name}: expected a number above 0, got {value}.")


# ---- of functions


def check_floating(name: str, tensor: Tensor) -> None:
    """TypeError unless it is a tensor of a floating-point dtype."""
    _check_tensor(name, tensor)
    if not tensor.is_floating_point():
        raise TypeError(f"{name}: expected a floating-point tensor, got {tensor.dtype}.")


def check_matrix(name: str, matrix: Tensor, shape: str) -> None:
    """TypeError unless it is floating point, ValueError unless it has two dimensions."""
    check_floating(name, matrix)
    if matrix.dim() != 2:
        raise ValueError(f"{name}: expected shape {shape}, got {tuple(matrix.shape)}.")


def check_fixed(name: str, tensor: Tensor | None) -> None:
    """ValueError for a tensor that requires grad where no gradient is computed."""
    if tensor is not None and tensor.requires_grad:
        raise ValueError(
            f"{name}: expected a tensor that is fixed, got one that requires grad; no gradient would reach it. "
            f"Pass {name}.detach()."
        )


def check_labels(labels: Tensor, rows: int) -> None:
    """TypeError unless they are integers, ValueError unless there is one for each row."""
    _check_tensor("labels", labels)
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise TypeError(f"labels: expected integer class indices, got {labels.dtype}.")
    if labels.shape != (rows,):
        raise ValueError(f"labels: expected shape ({rows},), one index per row, got {tuple(labels.shape)}.")


def check_label_range(error: Exception, labels: Tensor, scores: Tensor, dim: int) -> None:
    """Raise ValueError that names the argument, if `error` is a kernel's complaint about a label.

    The classes are dimension `dim` of `scores`. The kernels look at the labels anyway; on a GPU nothing looks at them,
    since that would wait for the device.
    """
    if "out of bounds" in str(error):  # the words of PyTorch's losses, and so of ours
        lowest, highest = int(labels.min()), int(labels.max())
        raise ValueError(
            f"labels: expected class indices 0 ... {scores.shape[dim] - 1}, got {lowest} ... {highest}. "
            "Relabel the classes from 0 in the order of the logits."
        ) from None


def check_reduction(reduction: str) -> None:
    """ValueError for a name that is no reduction's."""
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction: expected one of {', '.join(REDUCTIONS)}, got {reduction!r}.")


def check_devices(**tensors: Any) -> None:
    """ValueError for tensors on several devices."""
    devices = {name: tensor.device for name, tensor in tensors.items() if tensor is not None}
    if len(set(devices.values())) > 1:
        got = ", ".join(f"{name} on {device}" for name, device in devices.items())
        raise ValueError(f"devices: expected one for all, got {got}.")


def _check_tensor(name: str, value: Any) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(value).__name__}. Use torch.as_tensor(...).")
