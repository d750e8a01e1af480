"""Gram, projection and the updates on it, against independent float64 formulas, over dtypes, shapes, strides, edges."""

import math

import numpy as np
import pytest
import torch

from prograd_fast import reference
from tests.tolerances import assert_close

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
# 0-d; one element; odd; a CLIP context; class-specific contexts; empty; rows without elements; no rows
SHAPES = [(), (1,), (7, 3, 5), (16, 512), (10, 4, 32), (0,), (3, 0), (0, 5)]


def by_hand(a, b, lambda_, scope):
    """The formula over numpy float64 arrays, one unit at a time."""
    a, b = [x.astype(np.float64) for x in a], [x.astype(np.float64) for x in b]
    if scope == "global":
        dot = sum(float((x * y).sum()) for x, y in zip(a, b, strict=True))
        norm = sum(float((y * y).sum()) for y in b)
        return [x - lambda_ * min(0.0, dot) / norm * y if norm > 0 else x for x, y in zip(a, b, strict=True)]
    out = []
    for x, y in zip(a, b, strict=True):
        units = [(x[i], y[i]) for i in range(len(x))] if scope == "row" and x.ndim else [(x, y)]
        rows = []
        for u, v in units:
            dot, norm = float((u * v).sum()), float((v * v).sum())
            rows.append(u - lambda_ * min(0.0, dot) / norm * v if norm > 0 else u)
        out.append(np.stack(rows) if scope == "row" and x.ndim and rows else (rows[0] if rows else x))
    return out


def gradients(shapes, dtype, seed=0):
    g = torch.Generator().manual_seed(seed)
    make = lambda: [torch.randn(s, generator=g, dtype=torch.float64).to(dtype) for s in shapes]  # noqa: E731
    return make(), make()


@pytest.mark.parametrize("scope", ["tensor", "row", "global"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("lambda_", [0.0, 0.8, 1.0, 1.5])
def test_project(scope, dtype, lambda_):
    for seed in range(3):  # several draws: every unit conflicts in some and not in others
        a, b = gradients(SHAPES, dtype, seed)
        expected = by_hand([x.double().numpy() for x in a], [x.double().numpy() for x in b], lambda_, scope)
        for actual, e, x in zip(reference.project(a, b, lambda_, scope), expected, a, strict=True):
            assert actual.dtype == dtype
            assert_close(actual, np.asarray(e), "formula", dtype, scale=x.abs().clamp(min=1.0))


@pytest.mark.parametrize("scope", ["tensor", "row", "global"])
def test_gram(scope):
    a, b = gradients(SHAPES, torch.float32)
    entries = reference.gram(a, b, scope)
    if scope == "global":
        units = [(torch.cat([x.flatten() for x in a]), torch.cat([x.flatten() for x in b]))]
    elif scope == "tensor":
        units = list(zip(a, b, strict=True))
    else:  # a 0-d tensor is one row
        rows = [(x.unsqueeze(0), y.unsqueeze(0)) if x.dim() == 0 else (x, y) for x, y in zip(a, b, strict=True)]
        units = [unit for x, y in rows for unit in zip(x, y, strict=True)]
    expected = torch.stack(
        [
            torch.stack([(x * x).sum(), (x * y).sum(), (y * y).sum()])
            for x, y in ((u.double(), v.double()) for u, v in units)
        ]
    )
    assert_close(entries, expected, "formula", torch.float32)


def test_layouts():
    """Transposed, strided, expanded and a view into a bigger buffer: the same numbers as contiguous copies."""
    g = torch.Generator().manual_seed(1)
    big = torch.randn(40, 40, generator=g)
    views = [big.t()[3:9], big[::3, 1::2], torch.randn(1, 6, generator=g).expand(4, 6), big[5]]
    others = [torch.randn(v.shape, generator=g) for v in views]
    for scope in ("tensor", "row", "global"):
        plain = reference.project([v.contiguous() for v in views], others, 0.9, scope)
        for x, y in zip(reference.project(views, others, 0.9, scope), plain, strict=True):
            assert torch.equal(x, y)
        plain = reference.project(others, [v.contiguous() for v in views], 0.9, scope)
        for x, y in zip(reference.project(others, views, 0.9, scope), plain, strict=True):
            assert torch.equal(x, y)


@pytest.mark.parametrize("dtype", DTYPES)
def test_orthogonal_afterwards(dtype):
    """The point of it: with λ = 1 nothing is left against b, and g = a where there was no conflict."""
    a, b = torch.tensor([1.0, -2.0, 3.0]).to(dtype), torch.tensor([-1.0, 1.0, 0.5]).to(dtype)
    (g,) = reference.project([a], [b])
    assert abs(float((g.double() * b.double()).sum())) <= 4 * torch.finfo(dtype).eps * float(a.norm() * b.norm())
    (g,) = reference.project([a], [-b])
    assert torch.equal(g, a)


NAN, INF = math.nan, math.inf
UNCHANGED = {
    "b zero": ([1.0, -2.0], [0.0, 0.0]),
    "b missing": ([1.0, -2.0], None),
    "b NaN": ([1.0, -2.0], [NAN, 1.0]),
    "b Inf": ([1.0, -2.0], [-INF, 1.0]),
    "b whose norm overflows": ([1.0, -2.0], [-1e30, 1.0]),
    "b whose norm vanishes": ([1.0, -2.0], [-1e-30, 0.0]),
    "a quotient that overflows": ([1e20, 1.0], [-1.2e-19, 0.0]),
    "a zero": ([0.0, 0.0], [1.0, 2.0]),
    "orthogonal": ([1.0, 1.0], [1.0, -1.0]),
    "aligned": ([1.0, 1.0], [1.0, 1.0]),
    "a NaN": ([NAN, -2.0], [1.0, 1.0]),
    "a Inf": ([INF, -2.0], [-1.0, 1.0]),
}


@pytest.mark.parametrize("case", UNCHANGED)
@pytest.mark.parametrize("scope", ["tensor", "row", "global"])
def test_edges_leave_the_task_gradient_as_it_is(case, scope):
    """A gradient that cannot be projected on is left alone: exactly a, bit for bit, with no NaN but what a had."""
    a, b = UNCHANGED[case]
    a = torch.tensor(a)
    if scope == "row":  # one row, so that the unit is the same
        a = a.unsqueeze(0)
    b = None if b is None else torch.tensor(b).reshape(a.shape)
    (g,) = reference.project([a], [b], 1.0, scope)
    assert torch.equal(g.isnan(), a.isnan())
    assert torch.equal(g[~g.isnan()], a[~a.isnan()])


@pytest.mark.parametrize("size", [10_000, 100_001, 3_000_000])  # one chunk of a thread, some, many; odd
def test_sums_do_not_depend_on_the_number_of_threads(size):
    a, b = gradients([(size,)], torch.float32)
    threads = torch.get_num_threads()
    results = []
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            results.append(reference.gram(a, b))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_one_bad_unit_does_not_touch_the_others():
    a = [torch.tensor([1.0, -1.0]), torch.tensor([1.0, -1.0])]
    b = [torch.tensor([NAN, 1.0]), torch.tensor([0.0, 1.0])]
    g = reference.project(a, b)
    assert torch.equal(g[0], a[0])
    assert torch.equal(g[1], torch.tensor([1.0, 0.0]))


BAD = [
    ([torch.zeros(2)], [], ValueError, "general: expected one gradient"),
    ([torch.zeros(2)], [torch.zeros(3)], ValueError, r"general\[0\]: expected the task gradient's shape \(2,\)"),
    (
        [torch.zeros(2)],
        [torch.zeros(2, device="meta")],
        ValueError,
        r"general\[0\]: expected the task gradient's device",
    ),
    ([torch.zeros(2).to_sparse()], [torch.zeros(2)], TypeError, r"task\[0\]: expected a dense gradient"),
    ([torch.zeros(2)], [torch.zeros(2, dtype=torch.complex64)], TypeError, r"general\[0\]: expected a real"),
    ([torch.zeros(2, dtype=torch.int32)], [torch.zeros(2)], TypeError, r"task\[0\]: expected a real"),
]


@pytest.mark.parametrize(("task", "general", "error", "message"), BAD)
def test_bad_input(task, general, error, message):
    with pytest.raises(error, match=message):
        reference.project(task, general)


@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("maximize", [False, True])
def test_adamw_formula_is_torch_adamw(amsgrad, maximize):
    a, _ = gradients([(4, 6), (5,)], torch.float64)
    params, _ = gradients([(4, 6), (5,)], torch.float64, seed=9)
    mine = [p.clone() for p in params]
    theirs = [torch.nn.Parameter(p.clone()) for p in params]
    settings = {"lr": 0.03, "betas": (0.8, 0.97), "eps": 1e-6, "weight_decay": 0.2, "maximize": maximize}
    opt = torch.optim.AdamW(theirs, **settings, amsgrad=amsgrad)
    m, v, v_max = ([torch.zeros_like(p) for p in params] for _ in range(3))
    for step in range(1, 5):
        gradient = [x * math.cos(step) for x in a]
        for p, g in zip(theirs, gradient, strict=True):
            p.grad = g.clone()
        opt.step()
        reference.project_adamw_(
            mine, gradient, [None, None], m, v, step, **settings, max_exp_avg_sqs=v_max if amsgrad else None
        )
        for x, y in zip(mine, theirs, strict=True):
            assert_close(x, y, "formula", torch.float64)


@pytest.mark.parametrize(
    ("momentum", "dampening", "nesterov"), [(0.0, 0.0, False), (0.9, 0.1, False), (0.9, 0.0, True)]
)
@pytest.mark.parametrize("maximize", [False, True])
def test_sgd_formula_is_torch_sgd(momentum, dampening, nesterov, maximize):
    a, _ = gradients([(4, 6), (5,)], torch.float64)
    params, _ = gradients([(4, 6), (5,)], torch.float64, seed=9)
    mine = [p.clone() for p in params]
    theirs = [torch.nn.Parameter(p.clone()) for p in params]
    settings = {
        "lr": 0.03,
        "momentum": momentum,
        "dampening": dampening,
        "weight_decay": 0.2,
        "nesterov": nesterov,
        "maximize": maximize,
    }
    opt = torch.optim.SGD(theirs, **settings)
    buffers = [torch.zeros_like(p) for p in params] if momentum else None
    for step in range(4):
        gradient = [x * math.cos(step) for x in a]
        for p, g in zip(theirs, gradient, strict=True):
            p.grad = g.clone()
        opt.step()
        reference.project_sgd_(mine, gradient, [None, None], buffers, first=step == 0, **settings)
        for x, y in zip(mine, theirs, strict=True):
            assert_close(x, y, "formula", torch.float64)
