"""The CUDA kernels of the sums along edges, run on the CPU by simt.h, against the formula in float64."""

import math
from ctypes import Structure, byref, c_int64, c_void_p
from pathlib import Path

import pytest
import torch
from torch import Tensor

from prograd_fast.backends.triton_kernels.segments import sorted_ends
from prograd_fast.ops.edges import edge_softmax_sum_backward, edge_softmax_sum_formula
from tests.gpu.simt.build import compiler
from tests.gpu.simt.faults import Fault, assert_found, planted, run_case
from tests.gpu.simt.library import ORDERS, STORAGES, Guarded, Library, draw, pointer, storage_of
from tests.ops.test_edges import graph
from tests.tolerances import assert_close

pytestmark = pytest.mark.skipif(compiler() is None, reason="no C++ compiler: the CUDA kernels cannot run on the CPU")


class Segments(Structure):
    _fields_ = (("order", c_void_p), ("starts", c_void_p))


class Graph(Structure):
    _fields_ = (
        ("receivers", c_void_p),
        ("senders", c_void_p),
        ("edges", c_int64),
        ("nodes", c_int64),
        ("graphs", c_int64),
        ("samples", c_int64),
        ("width", c_int64),
        ("rows", Segments),
        ("ends", Segments),
    )


def segments(guarded: Guarded, ends: Tensor, nodes: int) -> Segments:
    """As csrc/cuda/segments.h makes them."""
    return Segments(*(guarded.input(x).data_ptr() for x in sorted_ends(ends, nodes)))


class Edges(Library):
    stem = "edges"

    def edge_softmax_sum_out(
        self, own: Tensor, other: Tensor, logits: Tensor, rows: Tensor, columns: Tensor, transposed: bool, *, y: Tensor
    ) -> None:
        guarded = Guarded()
        packed = _packed(guarded, own, logits, rows, columns, transposed, backward=False)
        self.call("edge_softmax_sum", storage_of(own), byref(packed), *map(pointer, (own, other, logits, y)))

    def edge_softmax_sum_backward_out(
        self, gradient: Tensor, own: Tensor, other: Tensor, logits: Tensor, rows: Tensor, columns: Tensor,
        transposed: bool, *, d_own: Tensor, d_other: Tensor, d_logits: Tensor,
    ) -> None:  # fmt: skip
        guarded = Guarded()
        packed = _packed(guarded, own, logits, rows, columns, transposed, backward=True)
        pointers = map(pointer, (gradient, own, other, logits, d_own, d_other, d_logits))
        self.call("edge_softmax_sum_backward", storage_of(own), byref(packed), *pointers)


def _packed(
    guarded: Guarded, own: Tensor, logits: Tensor, rows: Tensor, columns: Tensor, transposed: bool, backward: bool
) -> Graph:
    ends = (columns, rows) if transposed else (rows, columns)
    receivers, senders = (guarded.input(end) for end in ends)
    samples, nodes, width = own.shape
    graphs = 1 if logits.dim() == 1 else len(logits)
    sizes = len(rows), nodes, graphs, samples, width
    by = segments(guarded, rows, nodes), segments(guarded, ends[1] if backward else ends[0], nodes)
    return Graph(receivers.data_ptr(), senders.data_ptr(), *sizes, *by)


@pytest.fixture(scope="module")
def simt() -> Edges:
    return Edges()


def run_edges(
    simt: Edges, inputs: list[Tensor], rows: Tensor, columns: Tensor, transposed: bool, shift: int = 0
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Inputs own, other, logits; the result, its gradient, and those of the inputs."""
    guarded = Guarded(shift)
    given = [guarded.input(x) for x in inputs]
    y, *gradients = (guarded(torch.full(x.shape, math.nan, dtype=x.dtype)) for x in (inputs[0], *inputs))
    cotangent = guarded.input(draw(*y.shape, dtype=y.dtype, seed=9))
    simt.edge_softmax_sum_out(*given, rows, columns, transposed, y=y)
    results = dict(zip(("d_own", "d_other", "d_logits"), gradients, strict=True))
    simt.edge_softmax_sum_backward_out(cotangent, *given, rows, columns, transposed, **results)
    guarded.check()
    return y, cotangent, gradients


def check_edges(
    simt: Edges, inputs: list[Tensor], rows: Tensor, columns: Tensor, transposed: bool, shift: int = 0
) -> None:
    y, cotangent, gradients = run_edges(simt, inputs, rows, columns, transposed, shift)
    wide = [x.double() for x in inputs]
    assert_close(y, edge_softmax_sum_formula(*wide, rows, columns, transposed), "formula", y.dtype)
    expected = edge_softmax_sum_backward(cotangent.double(), *wide, rows, columns, transposed)
    for got, want in zip(gradients, expected, strict=True):
        assert_close(got, want, "formula", got.dtype)


def drawn(case: tuple[int, int, int, int], shared: bool, dtype: torch.dtype, seed: int = 0) -> list[Tensor]:
    batch, nodes, more, width = case
    edges = nodes - 1 + more
    shapes = (batch, nodes, width), (batch, nodes, width), (edges,) if shared else (batch, edges)
    return [draw(*shape, dtype=dtype, seed=seed + i) for i, shape in enumerate(shapes)]


CASES = {  # batch, nodes, further edges, width
    "two turns of a warp": (1, 5, 9, 264),  # and whole packs
    "odd": (2, 11, 20, 37),  # an incomplete pack, rows off a 16-byte boundary
    "more samples than lanes": (35, 2, 2, 1),
    "one node without an edge": (2, 1, 0, 3),
    "nothing": (0, 4, 3, 5),
    "no features": (2, 3, 2, 0),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", STORAGES)
def test_edges(simt: Edges, dtype: torch.dtype, case: str) -> None:
    rows, columns = graph(*CASES[case][1:3])
    for seed, shared in enumerate((True, False)):
        simt.schedule(ORDERS[seed], seed)
        for transposed in (False, True):
            check_edges(simt, drawn(CASES[case], shared, dtype), rows, columns, transposed, shift=seed)


def test_large_and_excluded_logits(simt: Edges) -> None:
    rows, columns = graph(5, 8)
    own, other, logits = drawn((2, 5, 8, 4), True, torch.float32)
    logits = 100 * logits
    logits[3] = -math.inf
    check_edges(simt, [own, other, logits], rows, columns, False)


def test_edges_to_no_node_bring_nan(simt: Edges) -> None:
    """A GPU cannot refuse them. Nobody else's memory is read, and other nodes are as they were."""
    rows, columns = graph(6, 6)
    inputs = drawn((2, 6, 6, 4), False, torch.float32)
    rows[0], columns[1] = 6, -(2**40)
    touched = {int(end) for e in (0, 1) for end in (rows[e], columns[e])}
    for transposed in (False, True):
        y, _, gradients = run_edges(simt, inputs, rows, columns, transposed)
        receiver = columns[0] if transposed else rows[1]
        assert y[:, receiver].isnan().all()
        assert gradients[2][:, :2].isnan().all()
        for node in set(range(6)) - touched:
            assert y[:, node].isfinite().all()


def test_launches(simt: Edges) -> None:
    rows, columns = graph(4, 3)
    simt.launches()
    run_edges(simt, drawn((2, 4, 3, 5), True, torch.float32), rows, columns, False)
    assert simt.launches() == 2 + 3


FAULTS = {
    "sum without its last edge": Fault(
        "edges.cu", "const int64_t end = of.starts[node + 1];", "const int64_t end = of.starts[node + 1] - 1;"
    ),
    "loops from the others": Fault("edges.cu", "sender == lane.node ? all.own", "sender != lane.node ? all.own"),
    "one graph's weights for all": Fault(
        "edges.cu", "(graph.graphs == 1 ? 0 : sample * graph.edges)", "(graph.graphs == 1 ? 0 : 0 * sample)"
    ),
    "softmax of one row": Fault("edges.cu", "exp(widen(logits[e]) - top) / sum;", "exp(widen(logits[e]) - top);"),
    "products of a warp's turn": Fault("edges.cu", "product = warp_sum(product);", "product = product;"),
    "first sample alone": Fault("edges.cu", "graphs == 1 ? all.graph.samples : 1;", "graphs == 1 ? 1 : 1;"),
    "written behind the row": Fault(
        "edges.cu",
        "store<N, T>(all.y + lane.at(lane.node, f), sum, lane.valid(f)",
        "store<N, T>(all.y + lane.at(lane.node, f), sum, N",
        says="outside|relative error",
    ),
}


def small_case(simt: Edges, seed: int) -> None:
    rows, columns = graph(5, 7, seed)
    for shared in (True, False):
        check_edges(simt, drawn((2, 5, 7, 37), shared, torch.float32, seed), rows, columns, shared, shift=1)


@planted(FAULTS)
def test_planted_faults_are_found(fault: str, tmp_path: Path) -> None:
    assert_found(FAULTS[fault], Edges, small_case, tmp_path)


def test_nothing_is_found_without_a_fault(simt: Edges) -> None:
    run_case(simt, small_case)
