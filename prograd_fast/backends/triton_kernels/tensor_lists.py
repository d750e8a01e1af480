"""Lists of tensors as kernels see them: a table of addresses on the device, and the tensor of each chunk.

One launch covers all tensors of a list. Addresses go over as an int64 tensor: 200 launches would cost more than the
work itself, and tuples of pointers would compile anew for every length. The table is kept while the addresses stay the
same, as they do for parameters, states and (with PyTorch's caching allocator) gradients, so that a step copies nothing.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from operator import attrgetter

import torch
import triton
import triton.language as tl
from torch import Tensor

from prograd_fast.backends.triton_kernels.launch import TRITON_DTYPES

ONE_LAUNCH = 65536  # elements that one program works through by itself
CHUNK = 4096  # elements of a program beyond that, times a factor where that would give more than MAX_CHUNKS programs
MAX_CHUNKS = 2048
UNITS_BLOCK, UNITS_WARPS = 4096, 16  # one program alone must keep enough bytes in flight: AdamW 5 x 16 KB here
ROWS_BLOCK, ROWS_WARPS = 1024, 4  # of many programs, each with one row or as many as fit
WIDE = tl.constexpr(8)  # elements of the widest load, 16 bytes of a 16-bit dtype
SCOPE_ROW, SCOPE_GLOBAL = 1, 2
_DTYPE = attrgetter("dtype")

# the columns of the table; the addresses of the lists follow from ADDRESS on
ROWS = tl.constexpr(0)  # rows that are units of the conflict test by themselves; 1 unless the scope is "row"
VECTORS = tl.constexpr(1)  # elements of a row, in vectors
UNIT = tl.constexpr(2)  # the tensor's first unit
FIRST_PROGRAM = tl.constexpr(3)  # the one with the tensor's first chunk, unit or rows
ADDRESS = tl.constexpr(4)


@dataclass(frozen=True)
class LaunchGroup:
    """Tensors with the same dtypes and alignment. One launch works on all of them."""

    table: Tensor  # (n_tensors, columns) int64
    owner: Tensor  # (n_programs,) int32, the tensor of each program's chunk, unit or rows
    first_program: int
    chunk: int  # elements
    dtypes: tuple[torch.dtype, ...]  # of each list
    vector: int  # elements that can be loaded at once: addresses and row lengths are multiples of it

    @property
    def n_tensors(self) -> int:
        """Rows of the table."""
        return self.table.shape[0]

    @property
    def n_columns(self) -> int:
        """Columns of the table."""
        return self.table.shape[1]

    @property
    def n_programs(self) -> int:
        """Programs of a launch."""
        return self.owner.numel()

    @property
    def unit_arguments(self) -> tuple[Tensor, int, Tensor, int, int]:
        """The first arguments of every kernel over units."""
        return self.table, self.n_columns, self.owner, self.first_program, self.n_tensors

    @property
    def chunk_arguments(self) -> tuple[Tensor, int, Tensor, int, int]:
        """The first arguments of every kernel over chunks."""
        return self.table, self.n_columns, self.owner, self.first_program, self.chunk // WIDE.value

    def dtype(self, position: int) -> tl.dtype:
        """Triton's name for the dtype of one list."""
        return TRITON_DTYPES[self.dtypes[position]]


@dataclass(frozen=True)
class LaunchPlan:
    """The launches that cover lists of tensors; depends on shapes, dtypes and alignment, never on the device."""

    groups: tuple[LaunchGroup, ...]
    n_programs: int  # of all groups; chunks where it is not one launch
    one_launch: bool  # every unit fits one program
    rows: int  # units of a program then
    width: int  # elements of a unit that it works on at once, a power of two

    @property
    def tile(self) -> dict[str, int]:
        """The constants of every kernel over units. They are the same for all, and so is the order of their sums."""
        warps = UNITS_WARPS if self.width == UNITS_BLOCK else ROWS_WARPS
        return {"UNITS": self.rows, "BLOCK": self.width, "num_warps": warps}


def plan_launches(
    lists: Sequence[Sequence[Tensor]], scope: int, steps: Sequence[Tensor] = (), whole_units: bool = True
) -> LaunchPlan:
    """The launches over lists of contiguous tensors of the same shapes.

    The plan has the addresses of the tensors and does not keep them alive. Step counters come last in the table.
    Without `whole_units` it is chunks, even of units that fit one program.
    """
    first = lists[0]
    rows = [t.shape[0] if t.dim() else 1 for t in first] if scope == SCOPE_ROW else [1] * len(first)
    shapes = tuple(zip(rows, map(Tensor.numel, first), strict=True))
    with_steps = [*lists, steps] if steps else lists
    # at every step, of hundreds of tensors: without Python code for each
    addresses = tuple(tuple(map(Tensor.data_ptr, tensors)) for tensors in with_steps)
    dtypes = tuple(tuple(map(_DTYPE, tensors)) for tensors in with_steps)
    device = first[0].device
    stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
    # a graph fills its tables when it is replayed, so they are its own
    capturing = device.type == "cuda" and torch.cuda.is_current_stream_capturing()
    make = cached_plan.__wrapped__ if capturing else cached_plan
    return make(shapes, addresses, dtypes, len(lists), scope, whole_units, device, stream)


@lru_cache(maxsize=64)  # an optimizer makes one plan per group; more only while addresses still change
def cached_plan(
    shapes: tuple[tuple[int, int], ...],
    addresses: tuple[tuple[int, ...], ...],
    dtypes: tuple[tuple[torch.dtype, ...], ...],
    n_lists: int,
    scope: int,
    whole_units: bool,
    device: torch.device,
    stream: int,  # on which the tables are sent: another would have to wait for them
) -> LaunchPlan:
    """The plan for tensors of these shapes, (rows that are units, elements), at these addresses."""
    is_global = scope == SCOPE_GLOBAL
    sizes = [numel for _, numel in shapes]
    chunk = CHUNK * max(1, math.ceil(sum(sizes) / (CHUNK * MAX_CHUNKS)))
    members: dict[tuple[tuple[torch.dtype, ...], int], list[int]] = {}
    for i, (rows, numel) in enumerate(shapes):
        row = numel // rows if rows else 0
        wide = row % WIDE.value == 0 and all(a[i] % 16 == 0 for a in addresses[:n_lists])
        members.setdefault((tuple(d[i] for d in dtypes), WIDE.value if wide else 1), []).append(i)
    if scope == SCOPE_ROW:  # a program has one row or several, since there may be thousands of short ones
        longest = max(numel // rows if rows else 0 for rows, numel in shapes)
        one_launch = longest <= CHUNK
        width = min(triton.next_power_of_2(max(1, longest)), ROWS_BLOCK)
        rows_together = ROWS_BLOCK // width
    else:
        one_launch = sum(sizes) <= ONE_LAUNCH and len(members) == 1 if is_global else max(sizes) <= ONE_LAUNCH
        width, rows_together = UNITS_BLOCK, 1
    one_launch = one_launch and whole_units
    units = [0]
    for rows, _ in shapes:
        units.append(units[-1] + (0 if is_global else rows))
    groups, n_programs = [], 0
    for (kinds, vector), indices in members.items():
        table: list[list[int]] = []
        owner: list[int] = []
        first_program = n_programs
        for position, i in enumerate(indices):
            rows, numel = shapes[i]
            row = numel // rows if rows else 0
            table.append([rows, row // vector, units[i], n_programs, *(a[i] for a in addresses)])
            if one_launch:  # the first program has all tensors of the unit, if it is a global one
                n_tensor = int(not owner) if is_global else math.ceil(rows / rows_together)
            else:  # an empty unit still has one chunk, which writes its zeros
                n_tensor = rows * max(1, math.ceil(row / chunk))
            owner += [position] * n_tensor
            n_programs += n_tensor
        sent_table, sent_owner = _send(table, torch.int64, device), _send(owner, torch.int32, device)
        groups.append(LaunchGroup(sent_table, sent_owner, first_program, chunk, kinds, vector))
    return LaunchPlan(tuple(groups), n_programs, one_launch, rows_together, width)


_replayed: list[Tensor] = []  # CUDA graphs copy from these as long as the process lives


def _send(values: list[int] | list[list[int]], dtype: torch.dtype, device: torch.device) -> Tensor:
    host = torch.tensor(values, dtype=dtype)
    if device.type != "cuda":
        return host
    host = host.pin_memory()  # so that the host does not wait for the copy
    if torch.cuda.is_current_stream_capturing():
        _replayed.append(host)
    return host.to(device, non_blocking=True)


@triton.jit
def field(table, n_columns, tensor, column):
    """A number of the table."""
    return tl.load(table + tensor * n_columns + column).to(tl.int64)


@triton.jit
def address(table, n_columns, tensor, position, dtype: tl.constexpr, VECTOR: tl.constexpr):
    """The address of a tensor in one of the lists."""
    pointer = tl.load(table + tensor * n_columns + ADDRESS + position).to(tl.int64).to(tl.pointer_type(dtype))
    if VECTOR > 1:
        pointer = tl.multiple_of(pointer, 16)
    return pointer


@triton.jit
def units_of(table, n_columns, owner, first_program, n_tensors, UNITS: tl.constexpr, IS_GLOBAL: tl.constexpr):
    """The program's tensors, as first and one past the last, and its units: rows of the first tensor, (UNITS, 1)."""
    tensor = tl.load(owner + tl.program_id(0)).to(tl.int64)
    number = first_program + tl.program_id(0) - field(table, n_columns, tensor, FIRST_PROGRAM)
    rows = number * UNITS + tl.arange(0, UNITS)[:, None]
    last = tl.zeros_like(tensor) + n_tensors if IS_GLOBAL else tensor + 1
    return tensor, last, rows


@triton.jit
def chunk_of(table, n_columns, owner, first_program, chunk, VECTOR: tl.constexpr):
    """The program's tensor, row, elements of a row, first element and one past the last, and number of the chunk."""
    tensor = tl.load(owner + tl.program_id(0)).to(tl.int64)
    number = first_program + tl.program_id(0)
    elements = field(table, n_columns, tensor, VECTORS) * VECTOR
    local = number - field(table, n_columns, tensor, FIRST_PROGRAM)
    per_row = tl.maximum(tl.cdiv(elements, chunk), 1)
    start = local % per_row * chunk
    return tensor, local // per_row, elements, start, tl.minimum(start + chunk, elements), number
