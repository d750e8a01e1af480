"""The operators of the prompt encoder in csrc/cuda, run on the CPU and compared with the reference in float64."""

import itertools
import math
from collections.abc import Sequence
from ctypes import Structure, byref, c_bool, c_double, c_int, c_int64, c_void_p
from dataclasses import dataclass

import torch
from torch import Tensor

from prograd_fast.reference import transformer as reference
from tests.gpu.simt.library import STORAGES, Guarded, Library, accumulation
from tests.tolerances import assert_close


class _Rows(Structure):
    _fields_ = (("data", c_void_p), ("cotangent", c_int64), ("group", c_int64), ("row", c_int64))


class _Attention(Structure):
    _fields_ = (
        ("query", _Rows),
        ("key_value", _Rows),
        ("prefix", _Rows),
        ("offsets", c_void_p),
        *((name, c_int64) for name in ("groups", "queries", "rows", "prefix_rows", "segments")),
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


class Tower(Library):
    """The operators of the prompt encoder."""

    def shared_prefix_attention_out(self, *inputs: object, out: Tensor) -> None:
        storage, attention = self._attention(*inputs)  # type: ignore[arg-type]
        self._call("shared_prefix_attention", storage, byref(attention), byref(_rows(out)))

    def shared_prefix_attention_backward_out(
        self, gradient: Tensor, *inputs: object, d_query: Tensor, d_key_value: Tensor, d_prefix: Tensor
    ) -> None:
        storage, attention = self._attention(*inputs)  # type: ignore[arg-type]
        rows = (byref(_rows(tensor)) for tensor in (gradient, d_query, d_key_value, d_prefix))
        count = c_int64(gradient.shape[0])
        self._call("shared_prefix_attention_backward", storage, byref(attention), count, *rows)

    @staticmethod
    def _attention(
        query: Tensor,
        key_value: Tensor,
        prefix: Tensor,
        offsets: Tensor,
        heads: int,
        scale: float,
        last: bool,
    ) -> tuple[int, _Attention]:
        matrices = (_rows(query), _rows(key_value), _rows(prefix))
        sizes = (*query.shape[:2], key_value.shape[1], prefix.shape[1], len(offsets) - 1)
        width = query.shape[2] // heads
        attention = _Attention(*matrices, offsets.data_ptr(), *sizes, heads, width, scale, last)
        return STORAGES.index(query.dtype), attention

    def add_layer_norm_out(
        self,
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
        inputs = (c_void_p(tensor.data_ptr()) for tensor in (x, branch, weight, bias))
        results = (c_void_p(tensor.data_ptr()) for tensor in (total, normed, statistics))
        sizes = (c_int64(size) for size in x.shape)
        self._call("add_layer_norm", STORAGES.index(x.dtype), *inputs, c_double(eps), *sizes, *results)

    def layer_norm_backward_(
        self, d_total: Tensor, d_normed: Tensor, total: Tensor, statistics: Tensor, weight: Tensor
    ) -> None:
        tensors = (c_void_p(x.data_ptr()) for x in (d_total, d_normed, total, statistics, weight))
        sizes = (c_int64(size) for size in d_total.shape)
        self._call("layer_norm_backward", STORAGES.index(total.dtype), *tensors, *sizes)

    def gelu_out(self, x: Tensor, approximate: int, *, out: Tensor) -> None:
        pointers = (c_void_p(x.data_ptr()), c_int64(x.numel()), approximate, c_void_p(out.data_ptr()))
        self._call("gelu", STORAGES.index(x.dtype), *pointers)

    def gelu_backward_(self, gradient: Tensor, x: Tensor, approximate: int) -> None:
        to = (c_void_p(gradient.data_ptr()), c_int64(len(gradient)))
        of = (c_void_p(x.data_ptr()), c_int64(x.numel()), approximate)
        self._call("gelu_backward", STORAGES.index(x.dtype), *to, *of)


# ---- attention

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

    @property
    def columns(self) -> int:
        return self.heads * self.width


class Attention:
    """Everything that attention and its backward read and write, as views of wider matrices with gaps."""

    def __init__(self, case: Case, dtype: torch.dtype, shift: int = 0, scale: float | None = None) -> None:
        self.case, self.dtype, self.guarded = case, dtype, Guarded(shift)
        generator = torch.Generator().manual_seed(sum(case.segments) + case.prefix)
        d, rows = case.columns, sum(case.segments)
        self.queries = len(case.segments) if case.last else rows
        offsets = torch.tensor([0, *itertools.accumulate(case.segments)])
        self.padded: list[Tensor] = []

        def normal(*shape: int) -> Tensor:
            return self._with_gap(torch.randn(shape, generator=generator).to(dtype))

        own = normal(case.groups, rows, 3 * d)  # queries, keys and values of one matrix product
        query = normal(case.groups, self.queries, d) if case.last else own[..., :d]
        prefix = normal(case.groups, case.prefix, 2 * d)
        scale = case.width**-0.5 if scale is None else scale
        self.inputs = (query, own[..., d:], prefix, offsets, case.heads, scale, case.last)
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

    def forward(self, simt: Tower) -> Tensor:
        out = self._result(self.case.groups, self.queries, self.case.columns)
        simt.shared_prefix_attention_out(*self.inputs, out=out)
        self.check_memory()
        return out

    def backward(self, simt: Tower) -> tuple[Tensor, Tensor, Tensor]:
        case, d = self.case, self.case.columns
        rows = self._result(case.cotangents, case.groups, sum(case.segments), 3 * d)
        d_query = self._result(case.cotangents, case.groups, self.queries, d) if case.last else rows[..., :d]
        d_prefix = self._result(case.cotangents, case.groups, case.prefix, 2 * d)
        results = {"d_query": d_query, "d_key_value": rows[..., d:], "d_prefix": d_prefix}
        simt.shared_prefix_attention_backward_out(self.gradient, *self.inputs, **results)
        self.check_memory()
        return d_query, rows[..., d:], d_prefix

    def check(self, simt: Tower) -> None:
        query, key_value, prefix, *rest = self.inputs
        wide = (query.double(), key_value.double(), prefix.double(), *rest)
        assert_close(self.forward(simt), reference.shared_prefix_attention(*wide), "formula", self.dtype)
        expected = reference.shared_prefix_attention_backward(self.gradient.double(), *wide)
        for result, gradient in zip(self.backward(simt), expected, strict=True):
            assert_close(result, gradient, "formula", self.dtype)


# ---- norm


def check_add_layer_norm(
    simt: Tower, x: Tensor, branch: Tensor, shift: int = 0, eps: float = 1e-5
) -> tuple[Tensor, Tensor, Tensor]:
    acc = accumulation(x.dtype)
    guarded = Guarded(shift)
    generator = torch.Generator().manual_seed(x.shape[1])
    weight, bias = (torch.randn(x.shape[1], generator=generator).to(acc) for _ in range(2))
    total, normed = (guarded(torch.full_like(x, math.nan)) for _ in range(2))
    statistics = guarded(torch.full((len(x), 2), math.nan, dtype=acc))
    inputs = [guarded(tensor) for tensor in (x, branch, weight, bias)]
    simt.add_layer_norm_out(*inputs, eps, total=total, normed=normed, statistics=statistics)
    guarded.check()
    assert_close(total, x.double() + branch.double(), "formula", x.dtype)
    # of the total as it is stored
    t = total.double()
    _, norm, expected = reference.add_layer_norm(t, torch.zeros_like(t), weight.double(), bias.double(), eps)
    assert_close(normed, norm, "formula", x.dtype)
    for column in range(2):  # each relative to its own magnitude
        assert_close(statistics[:, column], expected[:, column], "formula", acc)
    return total, normed, statistics


def check_layer_norm_backward(
    simt: Tower, cotangents: int, rows: int, columns: int, dtype: torch.dtype, shift: int = 0
) -> Tensor:
    acc = accumulation(dtype)
    guarded = Guarded(shift)
    generator = torch.Generator().manual_seed(rows * columns)
    d_total, d_normed = torch.randn(2, cotangents, rows, columns, generator=generator).to(dtype)
    total = (3 * torch.randn(rows, columns, generator=generator) + 1).to(dtype)
    weight = torch.randn(columns, generator=generator).to(acc)
    t = total.double()
    statistics = torch.stack([t.mean(1), (t.var(1, unbiased=False) + 1e-5).rsqrt()], 1).to(acc)
    expected = reference.layer_norm_backward(
        d_total.double(), d_normed.double(), t, statistics.double(), weight.double()
    )
    arguments = [guarded(tensor) for tensor in (d_total, d_normed, total, statistics, weight)]
    simt.layer_norm_backward_(*arguments)
    guarded.check()
    assert_close(arguments[0], expected, "formula", dtype)
    return arguments[0]


# ---- GELU


def check_gelu(simt: Tower, x: Tensor, approximate: int, cotangents: int = 2, shift: int = 0) -> None:
    guarded = Guarded(shift)
    name = reference.APPROXIMATIONS[approximate]
    out, given = guarded(torch.full_like(x, math.nan)), guarded(x)
    simt.gelu_out(given, approximate, out=out)
    assert_close(out, reference.gelu(x.double(), name), "formula", x.dtype, scale=x)  # the gate is at most 1
    generator = torch.Generator().manual_seed(x.numel())
    start = torch.randn(cotangents, *x.shape, generator=generator).to(x.dtype)
    gradient = guarded(start)
    simt.gelu_backward_(gradient, given, approximate)
    guarded.check()
    assert_close(gradient, reference.gelu_backward(start.double(), x.double(), name), "formula", x.dtype, start)
