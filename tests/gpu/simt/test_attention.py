"""The CUDA kernels of attention with a shared prefix, run on the CPU by simt.h, against the reference in float64."""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from ctypes import Structure, byref, c_bool, c_double, c_int, c_int64, c_void_p
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from prograd_fast.ops import attention as formulas
from tests.gpu.simt.build import compiler
from tests.gpu.simt.faults import Fault, assert_found, planted, run_case
from tests.gpu.simt.library import SCHEDULES, STORAGES, Guarded, Library, storage_of
from tests.tolerances import assert_close

pytestmark = pytest.mark.skipif(compiler() is None, reason="no C++ compiler: the CUDA kernels cannot run on the CPU")


class _Rows(Structure):
    _fields_ = (("data", c_void_p), ("cotangent", c_int64), ("group", c_int64), ("row", c_int64))


class AttentionStruct(Structure):
    _fields_ = (
        ("query", _Rows),
        ("key_value", _Rows),
        ("prefix", _Rows),
        ("offsets", c_void_p),
        *((name, c_int64) for name in ("groups", "queries", "leading", "rows", "prefix_rows", "segments")),
        ("heads", c_int),
        ("width", c_int),
        ("scale", c_double),
        ("last", c_bool),
    )


def _rows(tensor: Tensor) -> _Rows:
    """Of a tensor (G, rows, columns) or (K, G, rows, columns)."""
    strides = tensor.stride()
    assert strides[-1] == 1
    return _Rows(tensor.data_ptr(), strides[0] if tensor.dim() == 4 else 0, *strides[-3:-1])


class SharedPrefixAttention(Library):
    stem = "attention"

    def shared_prefix_attention_out(self, *inputs: object, out: Tensor) -> None:
        storage, attention = self._attention(*inputs)  # type: ignore[arg-type]
        self.call("shared_prefix_attention", storage, byref(attention), byref(_rows(out)))

    def shared_prefix_attention_backward_out(
        self,
        gradient: Tensor,
        query: Tensor,
        key_value: Tensor,
        prefix: Tensor | None,
        leading: int,
        *inputs: object,
        d_query: Tensor,
        d_key_value: Tensor,
        d_prefix: Tensor | None,
    ) -> None:
        storage, attention = self._attention(query, key_value, prefix, leading, *inputs)  # type: ignore[arg-type]
        d_shared = d_key_value[:, :, :leading] if d_prefix is None else d_prefix
        tensors = (gradient, d_query, d_key_value[:, :, leading:], d_shared)
        rows = (byref(_rows(tensor)) for tensor in tensors)
        count = c_int64(gradient.shape[0])
        self.call("shared_prefix_attention_backward", storage, byref(attention), count, *rows)

    @staticmethod
    def _attention(
        query: Tensor,
        key_value: Tensor,
        prefix: Tensor | None,
        leading: int,
        offsets: Tensor,
        heads: int,
        scale: float,
        last: bool,
    ) -> tuple[int, AttentionStruct]:
        """As csrc/cuda/attention.cpp makes it."""
        shared = key_value[:, :leading] if prefix is None else prefix
        matrices = (_rows(query), _rows(key_value[:, leading:]), _rows(shared))
        rows = key_value.shape[1] - leading
        sizes = (*query.shape[:2], 0 if last else leading, rows, shared.shape[1], len(offsets) - 1)
        width = query.shape[2] // heads
        attention = AttentionStruct(*matrices, offsets.data_ptr(), *sizes, heads, width, scale, last)
        return storage_of(query), attention


GAP = 8  # columns behind every row that no kernel may touch; a multiple of 16 bytes in every dtype


@dataclass(frozen=True)
class Case:
    """Sizes of one call of attention and of its backward."""

    segments: Sequence[int]  # rows of each
    prefix: int
    heads: int
    width: int
    groups: int = 1
    cotangents: int = 2
    last: bool = False
    leading: bool = False  # the prefix is the first rows of the others

    @property
    def columns(self) -> int:
        return self.heads * self.width


class Attention:
    """Everything that attention and its backward read and write, as views of wider matrices with gaps."""

    def __init__(self, case: Case, dtype: torch.dtype, shift: int = 0, scale: float | None = None) -> None:
        self.case, self.dtype, self.guarded = case, dtype, Guarded(shift)
        generator = torch.Generator().manual_seed(sum(case.segments) + case.prefix)
        d, leading = case.columns, case.prefix if case.leading else 0
        self.rows = leading + sum(case.segments)
        self.queries = len(case.segments) if case.last else self.rows
        offsets = self.guarded.input(torch.tensor([0, *itertools.accumulate(case.segments)]))
        self.padded: list[Tensor] = []

        def normal(*shape: int) -> Tensor:
            return self._with_gap(torch.randn(shape, generator=generator).to(dtype))

        own = normal(case.groups, self.rows, 3 * d)  # queries, keys and values of one matrix product
        query = normal(case.groups, self.queries, d) if case.last else own[..., :d]
        prefix = None if case.leading else normal(case.groups, case.prefix, 2 * d)
        scale = case.width**-0.5 if scale is None else scale
        self.inputs: tuple[Any, ...] = (query, own[..., d:], prefix, leading, offsets, case.heads, scale, case.last)
        self.gradient = normal(case.cotangents, case.groups, self.queries, d)

    def _with_gap(self, values: Tensor) -> Tensor:
        """The same values as a view of rows that are wider by GAP."""
        buffer = self.guarded(torch.nn.functional.pad(values.double(), (0, GAP), value=77).to(values.dtype))
        self.padded.append(buffer)
        return buffer[..., : values.shape[-1]]

    def _result(self, *shape: int) -> Tensor:
        return self._with_gap(torch.full(shape, math.nan, dtype=self.dtype))

    def check_memory(self) -> None:
        self.guarded.check()
        for buffer in self.padded:
            assert bool((buffer[..., -GAP:] == 77).all()), "write outside of a row"

    def forward(self, simt: SharedPrefixAttention) -> Tensor:
        out = self._result(self.case.groups, self.queries, self.case.columns)
        simt.shared_prefix_attention_out(*self.inputs, out=out)
        self.check_memory()
        return out

    def backward(self, simt: SharedPrefixAttention) -> list[Tensor]:
        """The gradients of query, key_value and, where it is no leading rows, prefix."""
        case, d = self.case, self.case.columns
        rows = self._result(case.cotangents, case.groups, self.rows, 3 * d)
        d_query = self._result(case.cotangents, case.groups, self.queries, d) if case.last else rows[..., :d]
        d_prefix = None if case.leading else self._result(case.cotangents, case.groups, case.prefix, 2 * d)
        simt.shared_prefix_attention_backward_out(
            self.gradient, *self.inputs, d_query=d_query, d_key_value=rows[..., d:], d_prefix=d_prefix
        )
        self.check_memory()
        return [d_query, rows[..., d:]] if d_prefix is None else [d_query, rows[..., d:], d_prefix]

    def check(self, simt: SharedPrefixAttention) -> None:
        query, key_value, prefix, *rest = self.inputs
        wide = (query.double(), key_value.double(), None if prefix is None else prefix.double(), *rest)
        assert_close(self.forward(simt), formulas.shared_prefix_attention(*wide), "formula", self.dtype)
        expected = formulas.shared_prefix_attention_backward(self.gradient.double(), *wide)
        for result, gradient in zip(self.backward(simt), expected, strict=False):
            assert gradient is not None
            assert_close(result, gradient, "formula", self.dtype)


@pytest.fixture(scope="module")
def simt() -> SharedPrefixAttention:
    return SharedPrefixAttention()


CASES = {
    "one row": Case([1], prefix=0, heads=1, width=1),
    "no prefix": Case([3, 1, 5], prefix=0, heads=2, width=16),
    "odd width": Case([2, 4], prefix=3, heads=3, width=5),  # no head starts on 16 bytes
    "half of the lanes": Case([4, 2, 9], prefix=5, heads=2, width=32, cotangents=1),
    "groups": Case([2, 14, 3], prefix=17, heads=2, width=64, groups=2),  # CLIP's heads
    "wide heads": Case([3, 7], prefix=5, heads=2, width=72),  # 16 lanes, not all of them used
    "widest": Case([5], prefix=2, heads=1, width=128, cotangents=1),
    "three cotangents": Case([6, 5], prefix=4, heads=1, width=16, cotangents=3),  # more than one launch takes
    "long segment": Case([70], prefix=1, heads=1, width=8),  # far more keys than a warp has lanes
    "chunks": Case([3] * 180, prefix=5, heads=1, width=8, cotangents=1),  # three blocks for a key of the prefix
}


# for 64 queries and 80 or 64 keys at a time, 16 of each for a warp
TILE_CASES = {
    "a tile of queries": Case([64], prefix=1, heads=1, width=64, cotangents=1),
    "segments over the edges of tiles": Case([60, 9, 3, 20], prefix=17, heads=2, width=32),
    "segment longer than a tile": Case([3, 90, 2], prefix=5, heads=1, width=64, cotangents=3),
    "whole prefix of CLIP": Case([5] * 14, prefix=77, heads=1, width=64),
    "wide heads": Case([5] * 14, prefix=77, heads=1, width=128, cotangents=1),
    "more tiles than shared memory has": Case([100, 30], prefix=170, heads=1, width=80),
    "columns to fill up": Case([7, 30], prefix=17, heads=3, width=40, groups=2, cotangents=1),
    "more segments than lanes": Case([1, 2] * 40, prefix=2, heads=1, width=16, cotangents=1),
}


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize(
    ("dtype", "name"),
    [
        *itertools.product(STORAGES, CASES),
        *itertools.product([torch.bfloat16, torch.float16], TILE_CASES),
        *itertools.product(
            [torch.float64, torch.float32], ["segments over the edges of tiles", "whole prefix of CLIP"]
        ),
    ],
)
def test_attention(simt: SharedPrefixAttention, dtype: torch.dtype, name: str, last: bool) -> None:
    simt.schedule(*SCHEDULES[len(name) % 3])
    Attention(dataclasses.replace((CASES | TILE_CASES)[name], last=last), dtype).check(simt)


LEADING_CASES = {
    "rows": Case([2, 3, 1], prefix=3, heads=2, width=8),
    "rows of a prompt": Case([5, 2, 4], prefix=17, heads=1, width=64),  # a warp has both kinds of queries
    "more than a tile of rows": Case([5] * 6, prefix=77, heads=1, width=64, cotangents=1),
    "rows alone": Case([], prefix=70, heads=1, width=32, groups=2),
    "chunks": Case([3] * 90, prefix=20, heads=1, width=8, cotangents=1),  # of the queries of a prefix row
}


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("name", LEADING_CASES)
@pytest.mark.parametrize("dtype", STORAGES)
def test_attention_of_leading_rows(simt: SharedPrefixAttention, dtype: torch.dtype, name: str, last: bool) -> None:
    simt.schedule(*SCHEDULES[len(name) % 3])
    attention = Attention(dataclasses.replace(LEADING_CASES[name], last=last, leading=True), dtype)
    if last and not LEADING_CASES[name].segments:  # nothing is asked: no gradient
        assert all(torch.equal(gradient, torch.zeros_like(gradient)) for gradient in attention.backward(simt))
    else:
        attention.check(simt)


def test_attention_of_many_segments(simt: SharedPrefixAttention) -> None:
    # three steps of the search for a row's segment, 32 at a time
    Attention(Case([1] * 1100, prefix=1, heads=1, width=8, cotangents=1), torch.bfloat16).check(simt)


@pytest.mark.parametrize("dtype", STORAGES)
def test_attention_off_a_16_byte_boundary(simt: SharedPrefixAttention, dtype: torch.dtype) -> None:
    Attention(CASES["groups"], dtype, shift=1).check(simt)


def test_attention_with_one_prefix_for_all_groups(simt: SharedPrefixAttention) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        attention = Attention(CASES["groups"], dtype)
        query, key_value, prefix, *rest = attention.inputs
        attention.inputs = (query, key_value, prefix[:1].expand(2, -1, -1), *rest)
        attention.check(simt)


@pytest.mark.parametrize("dtype", STORAGES)
def test_attention_of_extreme_scores(simt: SharedPrefixAttention, dtype: torch.dtype) -> None:
    # whole numbers, so that scores in the thousands have no rounding: most weights are 0, and ties share one
    attention = Attention(Case([3, 9], prefix=6, heads=2, width=8), dtype, scale=16.0)
    query, key_value, prefix, *_ = attention.inputs
    for tensor in (query, key_value, prefix):
        tensor.copy_((4 * tensor.double()).round())
    for keys, queries in ((key_value, [1, 2]), (prefix, [7, 8])):
        keys[0, 1, :16] = keys[0, 0, :16] = query[0, queries] = 2 * keys[0, 0, :16]  # above all others
        keys[0, 1, :16:8] += 5  # where those queries have 0: the scores tie, and yet the gradient is not 0
        query[0, queries, ::8] = 0
    attention.check(simt)


def test_attention_of_no_rows(simt: SharedPrefixAttention) -> None:
    attention = Attention(Case([], prefix=4, heads=2, width=8), torch.float32)
    assert attention.forward(simt).numel() == 0
    d_query, d_key_value, d_prefix = attention.backward(simt)
    assert d_query.numel() == d_key_value.numel() == 0
    assert torch.equal(d_prefix, torch.zeros_like(d_prefix))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_passes_nan_on(simt: SharedPrefixAttention, dtype: torch.dtype) -> None:
    attention = Attention(Case([4, 3], prefix=2, heads=2, width=8), dtype)
    attention.inputs[1][0, 2, :8] = torch.nan  # a key of the first head: rows 2 and 3 see it
    out = attention.forward(simt)[0]
    assert out[2:4, :8].isnan().all()
    assert out[[0, 1, 4, 5, 6]].isfinite().all()
    assert out[:, 8:].isfinite().all()


@pytest.mark.parametrize(("dtype", "cotangents"), [(torch.float32, 2), (torch.bfloat16, 3)])
@pytest.mark.parametrize("leading", [False, True])
def test_attention_launches(simt: SharedPrefixAttention, dtype: torch.dtype, cotangents: int, leading: bool) -> None:
    attention = Attention(dataclasses.replace(CASES["groups"], cotangents=cotangents, leading=leading), dtype)
    simt.launches()
    attention.forward(simt)
    assert simt.launches() == 1
    attention.backward(simt)
    assert simt.launches() == 1


@pytest.mark.parametrize("width", [64, 128])
def test_attention_on_a_gpu_with_less_shared_memory(simt: SharedPrefixAttention, width: int) -> None:
    simt.schedule("random", 0)
    simt.shared_limit(99 << 10)  # of compute capability 8.6, 8.9 and 12
    Attention(Case([3, 7, 20], prefix=17, heads=1, width=width), torch.bfloat16).check(simt)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_is_the_same_under_every_schedule(simt: SharedPrefixAttention, dtype: torch.dtype) -> None:
    attention, results = Attention(CASES["chunks"], dtype), []
    for order, seed in [*SCHEDULES, *(("random", seed) for seed in range(10, 14))]:
        simt.schedule(order, seed, resident_blocks=1 + 5 * seed % 16)
        results.append((attention.forward(simt), *attention.backward(simt)))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


FAULTS = {
    "sums of warps overwritten": Fault("attention_backward.cu", "__syncthreads();  // of_warps may still be read", ""),
    "sums of warps read too early": Fault(
        "attention_backward.cu", "    __syncthreads();\n    A total = 0;", "    A total = 0;"
    ),
    "sums of a lone block read too early": Fault(
        "attention_backward.cu",
        "__syncthreads();  // a block that is alone reads what its other threads have written",
        "",
    ),
    "one last block for all keys of the prefix": Fault(
        "attention_backward.cu", "is_last_block(backward.tickets + sum,", "is_last_block(backward.tickets,"
    ),
    "score of half the lanes": Fault("attention.cuh", "offset = kLanes / 2", "offset = kLanes / 4"),
    "groups of a warp that part": Fault("attention.cuh", "steps = warp_max(count);", "steps = count;", says="deadlock"),
    "query that does not see itself": Fault("attention.cuh", "query + 1}};", "query}};"),
    "segment that begins one row late": Fault(
        "attention.cuh", "attention.offsets[middle] <= row", "attention.offsets[middle] < row"
    ),
    "key that its own row does not see": Fault(
        "attention_backward.cu",
        "Span{leading + item.row, leading",
        "Span{leading + item.row + 1, leading",
    ),
}


def small_case(simt: SharedPrefixAttention, seed: int) -> None:
    """Two blocks for a key of the prefix, and one."""
    Attention(Case([1, 4, 2] * 40, prefix=5, heads=1, width=8, cotangents=1), torch.float32).check(simt)
    Attention(Case([3, 5], prefix=3, heads=2, width=24, groups=2), torch.float32).check(simt)


@planted(FAULTS)
def test_planted_faults_are_found(fault: str, tmp_path: Path) -> None:
    assert_found(FAULTS[fault], SharedPrefixAttention, small_case, tmp_path)


# in the kernels of 16-bit storage
TILE_FAULTS = {
    "halves of a fragment exchanged": Fault("mma.cuh", "c[i / 2][i % 2 * 2], c[", "c[i / 2][i % 2 * 2 + 1], c["),
    "rows of a fragment exchanged": Fault("mma.cuh", "c[i / 2][i % 2 * 2 + 1]);", "c[i / 2][1]);"),
    "matrices of a transposed tile exchanged": Fault("mma.cuh", "lane / 8 % 2 * 8;", "lane / 16 * 8;"),
    "columns of a tile read twice": Fault("mma.cuh", "column + lane / 16 * 8;", "column;"),
    "query that does not see itself": Fault("attention_tiles.cuh", "row[i] + 1};", "row[i]};"),
    "one key too many": Fault("attention_tiles.cuh", "< unsigned(length[i / 2])", "<= unsigned(length[i / 2])"),
    "segment that begins one row late": Fault("attention_tiles.cuh", "offsets[asked] <= row;", "offsets[asked] < row;"),
    "first segment of 16 rows for all": Fault(
        "attention_tiles.cuh", "if (bound <= row[i])", "if (bound <= row[i] - kMma)"
    ),
    "tile used before it is there": Fault("attention_tiles.cuh", "wait_copies<kStages - 1>();", ""),
    "tile used before others have copied it": Fault(
        "attention_tiles.cuh", "wait_copies<kStages - 1>();\n          __syncthreads();", "wait_copies<kStages - 1>();"
    ),
    "tile overwritten while it is read": Fault(
        "attention_tiles.cuh", "if (tile + kStages < count_) __syncthreads();", ""
    ),
    "tiles of the prefix taken for all": Fault("attention_tiles.cuh", "resident_ = count_ <=", "resident_ = 1 <="),
    "16 rows used before they are there": Fault(
        "attention_tiles.cuh", "wait_copies<0>();\n    __syncwarp();\n    rows", "__syncwarp();\n    rows"
    ),
    "results read before they are there": Fault(
        "attention_tiles.cuh", "  __syncwarp();\n  const int column = lane", "  const int column = lane"
    ),
    "results overwritten while they are read": Fault(
        "attention_tiles.cuh", "  __syncwarp();  // scratch may still be read\n#pragma", "#pragma"
    ),
    "sum of another maximum": Fault("attention_tiles.cuh", "sum[i] *= shrink[i];", ""),
    "maximum of a part of a row": Fault("attention_tiles.cuh", "offset < 4; offset", "offset < 2; offset"),
    "tickets left as they are": Fault("passes.cuh", "work.tickets[i] = 0;", ";"),
    "keys before their queries": Fault("passes.cuh", "cooperative_groups::this_grid().sync();", "__syncthreads();"),
    "next queries before the last are read": Fault("passes.cuh", "__syncthreads();  // other warps", "// other warps"),
    "sum shown without a fence": Fault(
        "reduce.cuh", "    __threadfence();\n    last = ", "    last = ", says="an atomic without a __threadfence"
    ),
    "sums read without a fence": Fault(
        "reduce.cuh", "== blocks - 1;\n    __threadfence();", "== blocks - 1;", says="a barrier without a __threadfence"
    ),
    "mean of a part of a row": Fault(
        "attention_backward_tiles.cuh", "sum_of_row(mean[i]) * statistics", "mean[i] * statistics"
    ),
    "queries used before they are there": Fault("attention_backward_tiles.cuh", "wait_copies<kStages - 1>();", ""),
    "keys overwritten while they are read": Fault(
        "attention_backward_tiles.cuh", "__syncthreads();                            // other", "// other"
    ),
    "sums of warps read too early": Fault(
        "attention_backward_tiles.cuh", "  __syncthreads();\n  float total", "  float total"
    ),
    "chunk of the queries left out": Fault("attention_backward_tiles.cuh", "int64_t c = 0;", "int64_t c = 1;"),
    "key that leading rows before it see": Fault("attention.cuh", "0 ? prefix_row : 0", "0 ? prefix_row / 2 : 0"),
    "segment's last query left out": Fault(
        "attention_backward_tiles.cuh", "attention.leading + of[i].end;", "attention.leading + of[i].end - 1;"
    ),
}


class Bfloat16Attention(SharedPrefixAttention):
    """From sources that `changed_sources` has left float32 alone: bfloat16 instead."""

    def __init__(self, csrc: Path) -> None:
        storage = csrc / "cuda" / "storage.cuh"
        text = storage.read_text().replace("case Storage::float32: return function(Type<float>{});", "")
        text = text.replace("bfloat16: return;", "bfloat16: return function(Type<bfloat16>{});")
        storage.write_text(text.replace("case Storage::float16:", "case Storage::float32:\n    case Storage::float16:"))
        super().__init__(csrc)


def small_tile_case(simt: SharedPrefixAttention, seed: int) -> None:
    """Three blocks for rows of the prefix; a segment for every row; more tiles than shared memory has; leading rows."""
    Attention(Case([1] * 40 + [3] * 160, prefix=5, heads=1, width=16, cotangents=1), torch.bfloat16).check(simt)
    Attention(Case([30, 1, 2, 9], prefix=170, heads=1, width=32), torch.bfloat16).check(simt)
    Attention(Case([5, 2, 4], prefix=17, heads=2, width=64, leading=True), torch.bfloat16).check(simt)


@planted(TILE_FAULTS)
def test_planted_faults_of_tiles_are_found(fault: str, tmp_path: Path) -> None:
    assert_found(TILE_FAULTS[fault], Bfloat16Attention, small_tile_case, tmp_path)


def test_nothing_is_found_without_a_fault(simt: SharedPrefixAttention) -> None:
    run_case(simt, small_case)
    run_case(simt, small_tile_case)
