"""Lists of tensors for the CUDA kernels of the projection and of the updates."""

import ctypes
import math
from collections.abc import Sequence
from ctypes import Structure, c_bool, c_double, c_int, c_int64, c_void_p

import torch
from torch import Tensor

from prograd_fast.ops import projection
from prograd_fast.ops.common import SCOPES
from tests.gpu.simt.library import accumulation

TENSOR, ROW, GLOBAL = range(3)
CHUNK = 8192  # elements of one block: kChunk of csrc/cuda/tensor_lists.cuh
SHAPES: list[tuple[int, ...]] = [(1,), (), (0,), (3, 5), (16, 33), (7, 1201), (2, CHUNK + 1)]
MANY: list[tuple[int, ...]] = [(n,) for n in range(1, 42)] + [(CHUNK + 3,)]  # more than the small table holds


class TensorOfList(Structure):
    _fields_ = (
        ("task", c_void_p),
        ("general", c_void_p),
        ("param", c_void_p),
        ("state", c_void_p * 3),
        ("step", c_void_p),
        ("unit_size", c_int64),
        ("units", c_int64),
    )


class ProjectionStruct(Structure):
    _fields_ = (
        ("scope", c_int),
        ("coefficients", c_void_p),
        ("entries", c_void_p),
        ("lambda_", c_double),
        ("noise_floor", c_double),
        ("found_inf", c_void_p),
        ("maximize", c_bool),
    )


def tensor_list(
    scope: int,
    task: list[Tensor],
    general: list[Tensor],
    params: Sequence[Tensor] = (),
    states: Sequence[list[Tensor]] = (),
    steps: Sequence[Tensor] = (),
) -> ctypes.Array[TensorOfList]:
    tensors = (TensorOfList * len(task))()
    for i, tensor in enumerate(tensors):
        tensor.task, tensor.general = task[i].data_ptr(), general[i].data_ptr()
        tensor.param = params[i].data_ptr() if params else None
        for k, state in enumerate(states):
            tensor.state[k] = state[i].data_ptr() if state else None
        tensor.step = steps[i].data_ptr() if steps else None
        tensor.units = task[i].shape[0] if scope == 1 and task[i].dim() else 1
        tensor.unit_size = task[i].numel() // tensor.units if tensor.units else 0
    return tensors


def gradients(shapes: Sequence[tuple[int, ...]], dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
    """Pairs of gradients, every second of which conflicts."""
    generator = torch.Generator().manual_seed(len(shapes))
    task = [torch.randn(shape, generator=generator) for shape in shapes]
    general = [
        torch.randn(shape, generator=generator) + (0.5 if i % 2 else -0.5) * a
        for i, (shape, a) in enumerate(zip(shapes, task, strict=True))
    ]
    return [a.to(dtype) for a in task], [b.to(dtype) for b in general]


def many_shapes(count: int) -> list[tuple[int, ...]]:
    """Small tensors of sizes that differ, every seventh of them empty, with one row or none."""
    return [((0,), (0, 3), (1, 0))[i // 7 % 3] if i % 7 == 3 else (1 + i % 5, 1 + i % 11) for i in range(count)]


def doubled(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [tensor.double() for tensor in tensors]


def empty_entries(task: list[Tensor], scope: int) -> Tensor:
    units = 1 if scope == GLOBAL else sum(projection.n_units(a, SCOPES[scope]) for a in task)
    return torch.full((units, 3), math.nan, dtype=accumulation(task[0].dtype))
