"""Tensors of more than 2³¹ elements: of a grid the last blocks alone are run, and of the memory only the ends exist."""

import mmap
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from prograd_fast.ops import gelu, layer_norm
from tests.gpu.simt.build import changed_sources, compiler
from tests.gpu.simt.faults import Fault, planted
from tests.gpu.simt.guarded import NO_ACCESS, protect
from tests.gpu.simt.library import Library, SimtError
from tests.gpu.simt.test_gelu import Gelu
from tests.gpu.simt.test_layer_norm import LayerNorm
from tests.gpu.simt.test_projection import Projection
from tests.tolerances import assert_close

pytestmark = pytest.mark.skipif(compiler() is None, reason="no C++ compiler: the CUDA kernels cannot run on the CPU")

ELEMENTS = 1 << 31
COLUMNS = 64
ROWS = ELEMENTS // COLUMNS + 3
TAIL = 3  # rows that are looked at: the last block's
BLOCKS = 4  # that are run
NO_RESERVE = 0x4000  # MAP_NORESERVE of Linux, which the module mmap has since Python 3.13


def sparse(*shape: int, tail: Tensor | None = None) -> Tensor:
    """Zeros in memory that exists where it is written, with as much around it that nobody may touch, and a tail."""
    size = 4 * torch.Size(shape).numel()
    size_up = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NO_RESERVE
    memory = mmap.mmap(-1, 3 * size_up, flags=flags)
    values = torch.frombuffer(memory, dtype=torch.float32, offset=size_up, count=size // 4)
    protect(values.data_ptr() - size_up, size_up, NO_ACCESS)
    protect(values.data_ptr() + size_up, size_up, NO_ACCESS)
    result = values.view(shape)
    if tail is not None:
        result[-len(tail) :] = tail
    return result


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)))


def check_layer_norm(simt: LayerNorm) -> None:
    simt.last_blocks(BLOCKS)
    rows = draw(TAIL, COLUMNS)
    weight, bias = draw(COLUMNS), 2 * draw(COLUMNS)
    total, normed, statistics = sparse(ROWS, COLUMNS), sparse(ROWS, COLUMNS), sparse(ROWS, 2)
    simt.add_layer_norm_out(
        sparse(ROWS, COLUMNS, tail=rows), sparse(ROWS, COLUMNS, tail=rows), weight, bias, 1e-5,
        total=total, normed=normed, statistics=statistics,
    )  # fmt: skip
    wide = rows.double()
    expected = layer_norm.add_layer_norm(wide, wide, weight.double(), bias.double(), 1e-5)
    for got, want in zip((total, normed, statistics), expected, strict=True):
        assert_close(got[-TAIL:], want, "formula", torch.float32)


def check_layer_norm_backward(simt: LayerNorm) -> None:
    simt.last_blocks(BLOCKS)
    rows, gradient, weight = draw(TAIL, COLUMNS), draw(1, TAIL, COLUMNS)[0], draw(COLUMNS)
    d_total = sparse(1, ROWS, COLUMNS)
    statistics = torch.stack([rows.mean(1), (rows.var(1, unbiased=False) + 1e-5).rsqrt()], 1)
    simt.layer_norm_backward_(
        d_total, sparse(ROWS, COLUMNS, tail=gradient)[None], sparse(ROWS, COLUMNS, tail=rows),
        sparse(ROWS, 2, tail=statistics), weight,
    )  # fmt: skip
    wide = (torch.zeros(1, TAIL, COLUMNS), gradient[None], rows, statistics, weight)
    expected = layer_norm.layer_norm_backward(*(x.double() for x in wide))
    assert_close(d_total[:, -TAIL:], expected, "formula", torch.float32)


def check_gelu(simt: Gelu) -> None:
    simt.last_blocks(BLOCKS)
    values, gradient = draw(TAIL * COLUMNS), draw(TAIL, COLUMNS).flatten()
    x, out = sparse(ROWS * COLUMNS, tail=values), sparse(ROWS * COLUMNS)
    simt.gelu_out(x, 0, out=out)
    name = gelu.APPROXIMATIONS[0]
    assert_close(out[-len(values) :], gelu.gelu(values.double(), name), "formula", torch.float32)
    cotangents = sparse(2, ROWS * COLUMNS)
    cotangents[:, -len(values) :] = gradient  # the second is beyond 32 bits with any size
    simt.gelu_backward_(cotangents, x, 0)
    expected = gelu.gelu_backward(gradient.double()[None], values.double(), name)
    assert_close(cotangents[:, -len(values) :], expected.expand(2, -1), "formula", torch.float32)


def check_project(simt: Projection) -> None:
    simt.last_blocks(BLOCKS)
    a, b = draw(TAIL * COLUMNS), draw(TAIL, COLUMNS).flatten()
    projected, coefficients = sparse(ROWS * COLUMNS), torch.tensor([[2.0, -0.5]])
    simt.project_out(
        [sparse(ROWS * COLUMNS, tail=a)], [sparse(ROWS * COLUMNS, tail=b)], coefficients, 1.0, 0.0, 0,
        entries=torch.zeros(1, 3), projected=[projected],
    )  # fmt: skip
    assert_close(projected[-len(a) :], 2 * a.double() - 0.5 * b.double(), "formula", torch.float32)


CASES: dict[str, tuple[type[Library], Callable[..., None]]] = {
    "layer norm": (LayerNorm, check_layer_norm),
    "layer norm backward": (LayerNorm, check_layer_norm_backward),
    "GELU": (Gelu, check_gelu),
    "projection": (Projection, check_project),
}


@pytest.mark.parametrize("case", CASES)
def test_elements_beyond_32_bits(case: str) -> None:
    library, check = CASES[case]
    check(library())


FAULTS = {
    "layer norm": Fault(
        "layer_norm.cu", "start = row.row * arguments.columns", "start = int(row.row * arguments.columns)"
    ),
    "layer norm backward": Fault(
        "layer_norm.cu",
        "start = (k * arguments.rows + row.row) * arguments.columns",
        "start = int((k * arguments.rows + row.row) * arguments.columns)",
    ),
    "GELU": Fault("gelu.cu", "T* here = gradient + k * size + begin", "T* here = gradient + int(k * size + begin)"),
    "projection": Fault(
        "tensor_lists.cuh",
        "chunk.offset = unit * unit_size + part * kChunk",
        "chunk.offset = int(unit * unit_size + part * kChunk)",
    ),
}


@planted(FAULTS)
def test_planted_faults_are_found(fault: str, tmp_path: Path) -> None:
    library, check = CASES[fault]
    one = FAULTS[fault]
    simt = library(changed_sources(one.file, one.old, one.new, tmp_path))
    with pytest.raises((AssertionError, SimtError), match=r"relative error|a kernel (read|wrote)"):
        check(simt)
