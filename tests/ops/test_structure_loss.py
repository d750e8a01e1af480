"""structure_loss on every backend: two Soft Wing losses by dense matrices, their gradients, and wrong calls."""

import math

import pytest
import torch
from torch import Tensor

from prograd_fast import reference
from prograd_fast.functional import structure_loss
from tests.ops.support import BACKENDS, DTYPES, accumulation, assert_same_bits, normal, running_on
from tests.ops.test_edges import graph
from tests.tolerances import assert_close

SETTINGS = (0.7, 3.0, 0.1)


def neighbours(nodes: int, more: int) -> tuple[Tensor, Tensor]:
    """A graph without loops; the last node listens to nobody."""
    rows, columns = graph(nodes, more)
    kept = (rows != columns) & (rows != nodes - 1)
    return rows[kept], columns[kept]


def dense(x: Tensor, t: Tensor, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """By a matrix of nodes by nodes, means over all numbers."""
    n = x.shape[1]
    graph_of = torch.zeros(n, n, dtype=torch.float64).index_put((rows, columns), torch.ones(len(rows)).double(), True)
    share = (1 / graph_of.sum(1).float()).double().nan_to_num(posinf=0.0)  # in float32, as the authors
    matrix = share[:, None] * graph_of - torch.eye(n, dtype=torch.float64)
    points, offsets = (reference.soft_wing(a, b, *SETTINGS) for a, b in ((x, t), (matrix @ x, matrix @ t)))
    scale = x[0].numel()
    return points / scale, offsets / scale


# landmarks; three axes, more samples than one chunk has; nobody has a neighbour
@pytest.mark.parametrize(("shape", "more"), [((3, 21, 2), 40), ((131, 4, 3), 5), ((2, 1, 2), 0)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_parity(backend: str, dtype: torch.dtype, shape: tuple[int, ...], more: int) -> None:
    ends = neighbours(shape[1], more)
    x, t = ((4 * normal(*shape, seed=seed)).to(dtype) for seed in (1, 2))
    x.requires_grad_()
    wide = x.detach().double().requires_grad_()
    theirs = dense(wide, t.double(), *ends)
    with running_on(backend):
        ours = structure_loss(x, t, *ends, *SETTINGS)
        batch = structure_loss(x, t, *ends, *SETTINGS, "batchmean")
        gradients = [torch.autograd.grad(loss, x, retain_graph=True)[0] for loss in ours]
        weights = (1, 2), (0.5, -3)  # a first weight of 1 is a sum in one pass
        both = [torch.autograd.grad(a * ours[0] + b * ours[1], x, retain_graph=True)[0] for a, b in weights]
    expected = [torch.autograd.grad(loss, wide, retain_graph=True)[0] for loss in theirs]
    for k in range(2):
        assert ours[k].dtype == accumulation(dtype)
        assert_close(ours[k], theirs[k], "formula", accumulation(dtype))
        assert_close(batch[k], theirs[k] * x[0].numel(), "formula", accumulation(dtype))
        assert_close(gradients[k], expected[k], "formula", dtype)
    for (a, b), gradient in zip(weights, both, strict=True):
        assert_close(gradient, a * expected[0] + b * expected[1], "formula", dtype)


@pytest.mark.parametrize("backend", BACKENDS)
def test_derivatives(backend: str) -> None:
    ends = neighbours(5, 8)
    x, t = 4 * normal(2, 5, 2, seed=1), normal(2, 5, 2, seed=2)
    x.requires_grad_()
    with running_on(backend):
        assert torch.autograd.gradcheck(lambda y: structure_loss(y, t, *ends, *SETTINGS), x)
        assert torch.autograd.gradgradcheck(lambda y: structure_loss(y, t, *ends, *SETTINGS), x)
        values = torch.vmap(lambda y: structure_loss(y, t, *ends))(torch.stack([x.detach(), t]))
        assert_close(torch.stack([v[0] for v in values]), torch.stack(structure_loss(x, t, *ends)), "formula", x.dtype)


@pytest.mark.parametrize("backend", BACKENDS)
def test_extreme_values_strides_and_threads(backend: str) -> None:
    """Nothing overflows that fits; NaN only where it was and at who listens; other strides and dtypes; same bits."""
    rows, columns = neighbours(6, 9)
    x, t = 1e18 * normal(70, 6, 2, dtype=torch.float32), normal(70, 6, 2, seed=1, dtype=torch.float32)
    call = torch.ops.prograd_fast.structure_loss
    options = 2.0, 20.0, 0.5, 1.0
    with running_on(backend):
        *losses, cotangents = call(x, t, rows, columns, *options)
        assert_close(
            torch.stack(losses), torch.stack(call(x.double(), t, rows, columns, *options)[:2]), "formula", t.dtype
        )
        assert cotangents.isfinite().all()
        assert_same_bits(lambda: call(x, t, rows, columns, *options))
        turned = x.transpose(1, 2).contiguous().transpose(1, 2)
        for a, b in ((turned, t), (x, t[:1].expand_as(t)), (x.double(), t.half())):
            copies = [y.to(torch.promote_types(a.dtype, b.dtype)).contiguous() for y in (a, b)]
            for got, want in zip(
                call(a, b, rows, columns, *options), call(*copies, rows, columns, *options), strict=True
            ):
                assert_close(got, want, "formula", torch.float32)
        x[3, 2, 0] = math.nan
        *losses, cotangents = call(x, t, rows, columns, *options)
    assert all(loss.isnan() for loss in losses)
    assert cotangents[0].isnan().nonzero().tolist() == [[3, 2, 0]]
    listeners = {2, *rows[columns == 2].tolist()}
    told = listeners | {int(c) for r, c in zip(rows, columns, strict=True) if int(r) in listeners}
    assert {tuple(i) for i in cotangents[1].isnan().nonzero().tolist()} == {(3, node, 0) for node in told}


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing(backend: str) -> None:
    ends = neighbours(4, 3)
    with running_on(backend):
        assert all(loss.isnan() for loss in structure_loss(torch.zeros(0, 4, 2), torch.zeros(0, 4, 2), *ends))
        none = torch.zeros(0, dtype=torch.int64)
        points, offsets = structure_loss(torch.ones(1, 2, 2), torch.zeros(1, 2, 2), none, none)
    assert (points, offsets) == (1, 1)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"prediction": torch.zeros(2, 3, 2).long()}, TypeError, "prediction: expected a floating-point tensor"),
        ({"prediction": torch.zeros(6, 2), "target": torch.zeros(6, 2)}, ValueError, "prediction: expected shape"),
        ({"target": torch.zeros(2, 3, 1)}, ValueError, "target: expected the prediction's shape"),
        ({"target": torch.zeros(2, 3, 2, requires_grad=True)}, ValueError, "target: expected a tensor that is fixed"),
        ({"rows": torch.zeros(2)}, TypeError, "rows: expected int64"),
        ({"columns": torch.zeros(3).long()}, ValueError, "columns: expected shape"),
        ({"columns": torch.tensor([0, 3])}, ValueError, r"columns\[1\]: expected a node below 3, got 3"),
        ({"epsilon": 0.0}, ValueError, "epsilon: expected a number above 0"),
        ({"reduction": "sum"}, ValueError, "reduction: expected 'mean' or 'batchmean', got 'sum'"),
    ],
)
def test_wrong_calls(backend: str, change: dict[str, object], error: type[Exception], message: str) -> None:
    ends = torch.tensor([0, 2])
    call = {"prediction": torch.zeros(2, 3, 2), "target": torch.zeros(2, 3, 2), "rows": ends, "columns": ends}
    with running_on(backend), pytest.raises(error, match=message):
        structure_loss(**{**call, **change})  # type: ignore[arg-type]
