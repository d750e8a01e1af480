"""edge_softmax_sum on every backend against dense matrices: values, gradients, both directions, and wrong calls."""

import pytest
import torch
from torch import Tensor

from prograd_fast import functional
from tests.ops.support import BACKENDS, DTYPES, assert_same_bits, normal, running_on
from tests.tolerances import assert_close


def graph(nodes: int, more: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A loop at each node but the last, and some other edges; rows and columns, not sorted."""
    g = torch.Generator().manual_seed(seed)
    pairs = [(i, i) for i in range(nodes - 1)]
    while len(pairs) < nodes - 1 + more:
        pair = tuple(torch.randint(nodes, (2,), generator=g).tolist())
        if pair not in pairs and pair != (nodes - 1, nodes - 1):
            pairs.append(pair)
    edges = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2)[torch.randperm(len(pairs), generator=g)]
    return edges[:, 0].contiguous(), edges[:, 1].contiguous()


def dense(own: Tensor, other: Tensor, logits: Tensor, rows: Tensor, columns: Tensor, transposed: bool) -> Tensor:
    """By a matrix with -inf beside the edges, its softmax, and the identity."""
    n = own.shape[1]
    z = logits if logits.dim() == 2 else logits.expand(len(own), -1)
    matrix = torch.full((len(own), n, n), -torch.inf, dtype=z.dtype)
    matrix = matrix.index_put((torch.arange(len(own))[:, None], rows, columns), z)
    weights = matrix.softmax(2).nan_to_num(0.0)  # a row without edges
    weights = weights.transpose(1, 2) if transposed else weights
    eye = torch.eye(n, dtype=z.dtype)
    return (weights * eye) @ own + (weights * (1 - eye)) @ other


CASES = {
    "landmarks": (3, 11, 20, 37),  # batch, nodes, further edges, width
    "one node without an edge": (2, 1, 0, 3),
    "no sample": (0, 4, 3, 5),
    "narrow": (1, 6, 8, 1),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("shared", [True, False], ids=["one graph", "a graph for each"])
@pytest.mark.parametrize("transposed", [False, True], ids=["rows", "transposed"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_parity(backend: str, dtype: torch.dtype, transposed: bool, shared: bool, case: str) -> None:
    batch, nodes, more, width = CASES[case]
    rows, columns = graph(nodes, more)
    shapes = (batch, nodes, width), (batch, nodes, width), (len(rows),) if shared else (batch, len(rows))
    inputs = [normal(*shape, seed=i, dtype=dtype).requires_grad_() for i, shape in enumerate(shapes)]
    wide = [x.detach().double().requires_grad_() for x in inputs]
    cotangent = normal(batch, nodes, width, seed=7)
    with running_on(backend):
        y = functional.edge_softmax_sum(*inputs, rows, columns, transposed)
        gradients = torch.autograd.grad(y, inputs, cotangent.to(dtype))
    expected = dense(*wide, rows, columns, transposed)
    assert y.dtype == dtype
    assert_close(y, expected, "formula", dtype)
    for got, want in zip(gradients, torch.autograd.grad(expected, wide, cotangent), strict=True):
        assert_close(got, want, "formula", dtype)


@pytest.mark.parametrize("backend", BACKENDS)
def test_derivatives(backend: str) -> None:
    rows, columns = graph(4, 4)
    inputs = [normal(*shape, seed=i).requires_grad_() for i, shape in enumerate([(2, 4, 3), (2, 4, 3), (len(rows),)])]

    def f(*x: Tensor) -> Tensor:
        return functional.edge_softmax_sum(*x, rows, columns, True)

    with running_on(backend):
        assert torch.autograd.gradcheck(f, inputs)
        assert torch.autograd.gradgradcheck(f, inputs)
        per_graph = torch.func.jacrev(f, argnums=2)(*(x.detach() for x in inputs))
        assert per_graph.shape == (2, 4, 3, len(rows))
        stacked = torch.stack([inputs[2], 2 * inputs[2]]).detach()
        many = torch.vmap(functional.edge_softmax_sum, in_dims=(None, None, 0, None, None))(
            inputs[0].detach(), inputs[1].detach(), stacked, rows, columns
        )
        single = functional.edge_softmax_sum(inputs[0], inputs[1], 2 * inputs[2], rows, columns)
        assert_close(many[1], single, "formula", torch.float64)


@pytest.mark.parametrize("backend", BACKENDS)
def test_large_logits_strides_and_threads(backend: str) -> None:
    """A softmax that would overflow without its maximum; transposed and expanded inputs; any number of threads."""
    rows, columns = graph(9, 30)
    own, other, logits = normal(20, 9, 64, dtype=torch.float32), normal(20, 64, 9, seed=1), 300 * normal(len(rows))
    other, logits = other.float().transpose(1, 2), logits.float()
    with running_on(backend):
        y = functional.edge_softmax_sum(own, other, logits, rows, columns)
        assert_close(y, dense(own, other, logits, rows, columns, False), "formula", torch.float32)
        args = own[:1].expand(20, 9, 64), other, logits, rows, columns, False
        backward = torch.ops.prograd_fast.edge_softmax_sum_backward
        gradient = normal(20, 9, 64, dtype=torch.float32)
        assert_same_bits(lambda: [functional.edge_softmax_sum(*args), *backward(gradient, *args)])
        mixed = functional.edge_softmax_sum(own.half(), other, logits.double(), rows, columns)
        assert mixed.dtype == torch.float16


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"own": torch.zeros(2, 3, 4).long()}, TypeError, "own: expected a floating-point tensor"),
        ({"other": torch.zeros(2, 3, 5)}, ValueError, r"other: expected shape"),
        ({"logits": torch.zeros(2, 2, 2)}, ValueError, "logits: expected shape"),
        ({"rows": torch.zeros(2)}, TypeError, "rows: expected int64"),
        ({"columns": torch.zeros(3).long()}, ValueError, "columns: expected shape"),
        ({"rows": torch.tensor([0, 3])}, ValueError, r"rows\[1\]: expected a node below 3, got 3"),
        ({"columns": torch.tensor([-1, 0])}, ValueError, r"columns\[0\]: expected a node below 3, got -1"),
    ],
)
def test_wrong_calls(backend: str, settings: dict[str, Tensor], error: type[Exception], message: str) -> None:
    ends = torch.tensor([0, 2])
    call = {"own": torch.zeros(2, 3, 4), "other": torch.zeros(2, 3, 4), "logits": torch.zeros(2)}
    with running_on(backend), pytest.raises(error, match=message):
        functional.edge_softmax_sum(**{**call, "rows": ends, "columns": ends, **settings})
