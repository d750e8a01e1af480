"""project_out on every backend: against float64, against the updates bit for bit, in place, and what it refuses."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from prograd_fast import reference
from prograd_fast.ops.common import SCOPES
from prograd_fast.ops.projection import combine, n_units, new_projected, split_units
from prograd_fast.ops.registry import SHORTCUTS
from tests.ops.support import BACKENDS, DTYPES, accumulation, assert_same_bits, normal, running_on
from tests.tolerances import assert_close

# one element without a dimension; nothing; less than a vector; a prompt; rows; tensors of one pass, of two
SHAPES = [(), (0,), (7,), (16, 512), (3, 5, 11), (2, 40001), (100_003,)]
PAST_CACHES = (1 << 22) + 3  # elements of float32 that are written past the caches, and some that fill no register
LAMBDA, FLOOR = 0.8, 1.1  # the floor is between the ratios ‖b‖/‖a‖ of `gradients`, about 1 and 1.2


def gradients(dtype: torch.dtype, shapes: list[tuple[int, ...]] = SHAPES) -> tuple[list[Tensor], list[Tensor]]:
    """Pairs of which every second one conflicts."""
    task = [normal(*shape, seed=i).to(dtype) for i, shape in enumerate(shapes)]
    general = [
        (normal(*shape, seed=i + 50) - (i % 2) * 0.7 * a.double()).to(dtype)
        for i, (shape, a) in enumerate(zip(shapes, task, strict=True))
    ]
    return task, general


def entries_of(task: list[Tensor], scope: int) -> Tensor:
    units = 1 if scope == 2 else sum(n_units(a, SCOPES[scope]) for a in task)
    return torch.full((units, 3), math.nan, dtype=accumulation(task[0].dtype) if task else torch.float32)


def project_out(
    task: list[Tensor],
    general: list[Tensor],
    projected: list[Tensor],
    coefficients: Tensor | None = None,
    floor: float = 0.0,
    scope: int = 0,
) -> Tensor:
    """Call the operator; returns the entries."""
    entries = entries_of(task, scope)
    torch.ops.prograd_fast.project_out(
        task, general, coefficients, LAMBDA, floor, scope, entries=entries, projected=projected
    )
    return entries


def empty(tensors: list[Tensor]) -> list[Tensor]:
    return [torch.full_like(x, math.nan) for x in tensors]


def same_bits(got: list[Tensor], wanted: list[Tensor]) -> bool:
    return all(
        torch.equal(x.contiguous().view(-1).view(torch.uint8), y.contiguous().view(-1).view(torch.uint8))
        for x, y in zip(got, wanted, strict=True)
    )


# ---- values


@pytest.mark.parametrize("scope", range(3))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_parity(backend: str, dtype: torch.dtype, scope: int) -> None:
    task, general = gradients(dtype)
    before = [x.clone() for x in task + general]
    wide = [[x.double() for x in tensors] for tensors in (task, general)]
    for floor in (0.0, FLOOR):
        results = empty(task)
        with running_on(backend):
            entries = project_out(task, general, results, floor=floor, scope=scope)
        assert_close(entries, reference.gram(*wide, SCOPES[scope]), "formula", entries.dtype)
        for a, g, wanted in zip(task, results, reference.project(*wide, LAMBDA, SCOPES[scope], floor), strict=True):
            assert_close(g, wanted, "formula", dtype, a)
    assert same_bits(task + general, before)


@pytest.mark.parametrize("scope", range(3))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_given_coefficients(backend: str, dtype: torch.dtype, scope: int) -> None:
    task, general = gradients(dtype)
    coefficients = normal(len(entries_of(task, scope)), 2, seed=3, dtype=torch.float32)
    coefficients[::3] = torch.tensor([1.0, 0.0])
    results = empty(task)
    with running_on(backend):
        entries = project_out(task, general, results, coefficients, scope=scope)
    assert entries.isnan().all()
    for a, b, g, c in zip(task, general, results, split_units(coefficients, task, SCOPES[scope]), strict=True):
        assert_close(g, combine(a.double(), b.double(), c.double()), "formula", dtype, a)


@pytest.mark.parametrize("floor", [0.0, FLOOR])
@pytest.mark.parametrize("scope", range(3))
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_project_then_update_is_the_fused_update(backend: str, dtype: torch.dtype, scope: int, floor: float) -> None:
    # bit for bit: the gradient is not rounded in between; the first step starts the momentum with it
    large = backend == "cpu" and scope == 0 and dtype == torch.float32
    task, general = gradients(dtype, [*SHAPES, (PAST_CACHES,)] if large else SHAPES)
    results, fused, plain = empty(task), [a * 0.5 for a in task], [a * 0.5 for a in task]
    buffers, plain_buffers = empty(task), empty(task)
    nothing = torch.tensor([[1.0, 0.0]], dtype=dtype).repeat(len(entries_of(task, scope)), 1)
    rest = (scope, False, False, True, None)
    with running_on(backend):
        step = torch.ops.prograd_fast.project_sgd_
        entries, fused_entries = project_out(task, general, results, floor=floor, scope=scope), entries_of(task, scope)
        step(fused, task, general, buffers, fused_entries, None, None, 0.1, 0.9, 0.0, 0.0, LAMBDA, floor, *rest)
        step(plain, results, general, plain_buffers, entries, nothing, None, 0.1, 0.9, 0.0, 0.0, 1.0, 0.0, *rest)
    assert torch.equal(entries, fused_entries)
    for got, wanted in ((results, buffers), (plain_buffers, buffers), (plain, fused)):
        assert all(torch.equal(x, y) for x, y in zip(got, wanted, strict=True))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_extremes(backend: str, dtype: torch.dtype) -> None:
    """Against float64, where both sums are finite, and ‖b‖² is normal, in the accumulation dtype; elsewhere it is a."""
    a = torch.tensor([3.0, -0.0, math.inf, math.nan, 1e-7, -2.0]).to(dtype)
    numbers = torch.finfo(accumulation(dtype))
    for value in (0.0, 1e-30, min(1e30, torch.finfo(dtype).max), math.inf, math.nan):
        for task in (a, a[[0, 1, 4, 5]]):
            general, result = torch.full_like(task, -value), empty([task])
            with running_on(backend):
                project_out([task], [general], result)
            _, dot, norm = reference.gram([task.double()], [general.double()])[0].tolist()
            if abs(dot) <= numbers.max and numbers.tiny <= norm <= numbers.max:
                (wanted,) = reference.project([task.double()], [general.double()], LAMBDA)
                assert not torch.equal(wanted, task.double())
                assert_close(result[0], wanted, "formula", dtype)
            else:
                assert torch.equal(result[0].isnan(), task.isnan())
                assert torch.equal(result[0].nan_to_num(5.0), task.nan_to_num(5.0))
    # beta 0 does not touch b, alpha is not forgotten
    result = empty([a])
    with running_on(backend):
        project_out([a], [torch.full_like(a, math.inf)], result, torch.tensor([[0.5, 0.0]]))
    assert torch.equal(result[0].nan_to_num(5.0), (0.5 * a).nan_to_num(5.0))


@pytest.mark.parametrize("size", [5, PAST_CACHES])
@pytest.mark.parametrize("backend", BACKENDS)
def test_bits_without_conflict(backend: str, size: int) -> None:
    # alpha 1 and beta 0: not even NaN payloads, negative zeros or a non-finite general gradient matter
    a = torch.tensor([1.0, -0.0, math.nan, math.inf, 3e-42]).repeat(size // 5 + 1)[1 : size + 1]
    for results in (empty([a]), [a.clone()]):
        with running_on(backend):
            project_out([a], [torch.full_like(a, math.inf)], results, torch.tensor([[1.0, 0.0]]))
        assert same_bits(results, [a])


@pytest.mark.parametrize("coefficients", [(1.0, 0.0), (0.5, 0.0), (0.5, -0.3)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_past_the_caches(dtype: torch.dtype, coefficients: tuple[float, float]) -> None:
    # a result that begins and ends within a register's place; in place goes the usual way and gives the same bits
    size = 16 + PAST_CACHES * 4 // dtype.itemsize
    a, b = (normal(4099, seed=i).to(dtype).repeat(size // 4099 + 1)[:size] for i in range(2))
    if coefficients[1] == 0:
        b = torch.full_like(b, math.inf)
    given = torch.tensor([coefficients])
    for shift in (0, 1, 3):
        buffer, usual = torch.full((size + 40,), 77.0, dtype=dtype), a[shift:].clone()
        result = buffer[16 + shift : 16 + size]
        project_out([a[shift:]], [b[shift:]], [result], given)
        project_out([usual], [b[shift:]], [usual], given)
        assert torch.equal(result, usual)
        assert bool(usual.isfinite().all())
        assert bool((buffer[: 16 + shift] == 77).all() and (buffer[16 + size :] == 77).all())


@pytest.mark.parametrize("scope", range(3))
def test_any_number_of_threads_gives_the_same_bits(scope: int) -> None:
    task, general = gradients(torch.float32, [(300_001,), (60, 1000), (10,), (3, 70001)])

    def run() -> list[Tensor]:
        results = empty(task)
        return [project_out(task, general, results, scope=scope), *results]

    assert_same_bits(run)


def test_company_does_not_change_the_bits() -> None:
    # 100000 elements alone are summed by all threads, and written afterwards; among others by one thread in one go
    found = []
    for shapes in ([(100_000,)], [(100_000,), (300_000,)]):
        task, general = gradients(torch.float32, shapes)
        general[0] = general[0] - task[0]
        results = empty(task)
        found.append([project_out(task, general, results)[0], results[0]])
    assert all(torch.equal(x, y) for x, y in zip(*found, strict=True))


# ---- memory


def layouts(seed: int) -> list[Tensor]:
    """Transposed, every second column, a view into a bigger buffer, and 0-d."""
    x = normal(6, 8, seed=seed, dtype=torch.float32)
    return [x.clone().T, x.clone()[:, ::2], x.clone()[1:], x.clone()[2, 3]]


@pytest.mark.parametrize("scope", range(3))
@pytest.mark.parametrize("backend", BACKENDS)
def test_any_strides_and_dtypes(backend: str, scope: int) -> None:
    task, general, results = layouts(1), [-b for b in layouts(2)], layouts(3)
    task[0] = task[0][:1, :1].expand(8, 6)
    general[2] = general[2].bfloat16()
    task[3], results[3] = task[3].bfloat16(), results[3].bfloat16()
    whole = results[1]._base
    assert whole is not None
    gaps = whole[:, 1::2].clone()
    wanted = reference.project([a.double() for a in task], [b.double() for b in general], LAMBDA, SCOPES[scope])
    with running_on(backend):
        project_out(task, general, results, scope=scope)
    for a, g, want in zip(task, results, wanted, strict=True):
        assert_close(g, want, "formula", g.dtype, a)
    assert torch.equal(whole[:, 1::2], gaps)


@pytest.mark.parametrize("scope", range(3))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_in_place(backend: str, dtype: torch.dtype, scope: int) -> None:
    task, general = gradients(dtype)
    task += [a.to(dtype) for a in layouts(1)]
    general += [b.to(dtype) for b in layouts(2)]
    results = empty(task)
    with running_on(backend):
        project_out(task, general, results, scope=scope)
        project_out(task, general, [a.detach() for a in task], scope=scope)
    assert same_bits(task, results)


Lists = tuple[list[Tensor], list[Tensor], list[Tensor]]
# task, general and projected, as views of 24 numbers; `own` is memory of nobody else's
ALLOWED: dict[str, Callable[[Tensor, Tensor], Lists]] = {
    "in place": lambda x, own: ([x[:4], x[4:8]], [x[8:12], x[8:12]], [x[:4], x[4:8]]),
    "side by side": lambda x, own: ([x[:4], x[4:8]], [x[:4], x[8:12]], [x[16:20], x[12:16]]),
    "nothing": lambda x, own: ([x[:0], x[4:4]], [x[:0], x[:0]], [x[:0], x[2:2]]),
    "interleaved": lambda x, own: ([x[:8:2]], [x[8:12]], [x[1:8:2]]),
}
REFUSED: dict[str, Callable[[Tensor, Tensor], Lists]] = {
    "part of its task gradient": lambda x, own: ([x[:4], own], [own, own], [x[1:5], x[8:12]]),
    "another's task gradient": lambda x, own: ([x[:4], own], [own, own], [x[8:12], x[:4]]),
    "exchanged": lambda x, own: ([x[:4], x[4:8]], [own, own], [x[4:8], x[:4]]),
    "its general gradient": lambda x, own: ([own, own], [x[:4], x[4:8]], [x[8:12], x[4:8]]),
    "another's general gradient, in part": lambda x, own: ([own, own], [x[:4], x[4:8]], [x[7:11], x[12:16]]),
    "twice the same": lambda x, own: ([own, own], [own, own], [x[:4], x[:4]]),
    "twice in part": lambda x, own: ([x[:4], own], [own, own], [x[:4], x[3:7]]),
    "transposed": lambda x, own: ([x[:4].view(2, 2)], [own.view(2, 2)], [x[:4].view(2, 2).T]),
}


@pytest.mark.parametrize("backend", BACKENDS)
def test_results_that_share_memory_are_refused(backend: str) -> None:
    with running_on(backend):
        for case, lists in (REFUSED | ALLOWED).items():
            numbers, own = torch.arange(1.0, 25.0), torch.ones(4)
            task, general, projected = lists(numbers, own)
            if case in ALLOWED:
                wanted = reference.project([a.clone() for a in task], [b.clone() for b in general], LAMBDA)
                project_out(task, general, projected)
                assert all(torch.equal(g, want) for g, want in zip(projected, wanted, strict=True)), case
                continue
            with pytest.raises(ValueError, match=r"projected\[[01]\]: expected memory of its own"):
                project_out(task, general, projected)
            assert torch.equal(numbers, torch.arange(1.0, 25.0)), case


@pytest.mark.parametrize("backend", BACKENDS)
def test_results_that_do_not_fit_are_refused(backend: str) -> None:
    a = torch.ones(4)
    with running_on(backend):
        with pytest.raises(TypeError, match=r"projected\[0\]: expected .*[Ff]loat.* as the task gradient, got"):
            project_out([a], [a], [a.double()])
        with pytest.raises(ValueError, match=r"projected\[0\]: expected a place for each element"):
            project_out([a], [a], [torch.ones(1).expand(4)])
        with pytest.raises(ValueError, match="projected: expected 1 tensors, got 0"):
            project_out([a], [a], [])


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_tensors(backend: str) -> None:
    for scope, entries in ((0, torch.ones(0, 3)), (2, torch.ones(1, 3))):
        with running_on(backend):
            torch.ops.prograd_fast.project_out([], [], None, 1.0, 0.0, scope, entries=entries, projected=[])
        assert torch.equal(entries, torch.zeros_like(entries))


# ---- the two ways to the kernel


def test_writes_are_counted() -> None:
    # autograd refuses a backward through a saved tensor that was changed since, whichever way it was
    for written in range(3):
        task, general, projected = ([torch.ones(3)] for _ in range(3))
        saved = [task, general, projected][written][0].requires_grad_()
        loss = saved.square().sum()
        with torch.no_grad():
            project_out(task, general, projected)
        if written < 2:
            loss.backward()
        else:
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                loss.backward()


@pytest.mark.parametrize("scope", range(3))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_new_results_are_the_operators_in_the_layout_of_the_parameters(dtype: torch.dtype, scope: int) -> None:
    task, general = gradients(dtype)
    # a transposed parameter; one of another dtype, as after `.float()`; a strided view, whose gradient is dense
    like = [torch.empty_like(a) for a in task]
    like[3] = torch.empty(512, 16, dtype=dtype).T
    like[2] = torch.empty(7, dtype=torch.float64)
    like[6] = torch.empty(2 * 100_003, dtype=dtype)[::2]
    wanted, entries = empty(task), entries_of(task, scope)
    expected = project_out(task, general, wanted, floor=FLOOR, scope=scope)
    before = entries._version
    got = new_projected(like, task, general, None, LAMBDA, FLOOR, scope, entries)
    assert same_bits(got, wanted)
    assert torch.equal(entries, expected)
    assert entries._version > before
    for result, a, p in zip(got, task, like, strict=True):
        assert (result.dtype, result.stride()) == (a.dtype, torch.empty_like(p).stride())
    coefficients = torch.tensor([[0.5, -2.0]], dtype=expected.dtype).repeat(len(expected), 1)
    project_out(task, general, wanted, coefficients, scope=scope)
    assert same_bits(new_projected(like, task, general, coefficients, 1.0, 0.0, scope, entries), wanted)


@pytest.mark.skipif("projected" not in SHORTCUTS, reason="the compiled kernels are not built")
def test_the_shortcut_is_for_plain_tensors() -> None:
    task, general = gradients(torch.float32)
    seen = []

    class Mode(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            seen.append(str(function))
            return function(*args, **(kwargs or {}))

    entries = entries_of(task, 0)
    with Mode():
        results = new_projected(task, task, general, None, 1.0, 0.0, 0, entries)
    assert "prograd_fast.project_out.default" in seen
    assert same_bits(results, new_projected(task, task, general, None, 1.0, 0.0, 0, entries))
