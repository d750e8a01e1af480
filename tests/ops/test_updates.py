"""gram_out, project_out, project_adamw_ and project_sgd_ on every backend against the float64 reference."""

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from prograd_fast import functional, reference
from prograd_fast.ops.common import SCOPES, Scope
from prograd_fast.ops.projection import floored, n_units
from tests.ops import floors
from tests.ops.support import BACKENDS, DTYPES, accumulation, normal, running_on, threads
from tests.tolerances import assert_close

# one element without a dimension; nothing; less than a vector; a prompt; rows; a tensor of several chunks and passes
SHAPES = [(), (0,), (7,), (16, 512), (3, 5, 11), (2, 40001)]
LR, EPS, WEIGHT_DECAY, LAMBDA = 1e-2, 1e-8, 0.1, 0.8
FLOOR = 1.1  # between the ratios ‖b‖/‖a‖ of `gradients`, about 1 and 1.2


def gradients(dtype: torch.dtype, shapes: list[tuple[int, ...]] = SHAPES) -> tuple[list[Tensor], list[Tensor]]:
    """Pairs of which every second one conflicts."""
    task = [normal(*shape, seed=i).to(dtype) for i, shape in enumerate(shapes)]
    general = [
        (normal(*shape, seed=i + 50) - (i % 2) * 0.7 * a.double()).to(dtype)
        for i, (shape, a) in enumerate(zip(shapes, task, strict=True))
    ]
    return task, general


def double(tensors: list[Tensor]) -> list[Tensor]:
    return [t.double() for t in tensors]


def copies(*lists: list[Tensor]) -> list[list[Tensor]]:
    return [[t.clone() for t in tensors] for tensors in lists]


def empty_entries(task: list[Tensor], scope: Scope) -> Tensor:
    units = 1 if scope == "global" else sum(n_units(a, scope) for a in task)
    return torch.full((units, 3), torch.nan, dtype=accumulation(task[0].dtype))


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_gram_and_project(backend: str, dtype: torch.dtype, scope: Scope) -> None:
    task, general = gradients(dtype)
    with running_on(backend):
        entries = functional.gram(task, general, scope)
    wanted = reference.gram(double(task), double(general), scope)
    assert entries.dtype == accumulation(dtype)
    assert_close(entries, wanted, "formula", accumulation(dtype))
    for floor in (0.0, FLOOR):
        with running_on(backend):
            projected = functional.project(task, general, LAMBDA, scope, floor)
        expected = reference.project(double(task), double(general), LAMBDA, scope, floor)
        for a, g, want in zip(task, projected, expected, strict=True):
            assert g.dtype == dtype
            assert_close(g, want, "formula", dtype, a)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_adamw(backend: str, dtype: torch.dtype) -> None:
    acc = accumulation(dtype)
    cases = itertools.product(SCOPES, (False, True), (False, True), dict.fromkeys((dtype, acc)))
    for scope, amsgrad, maximize, moments in cases:
        task, general = gradients(dtype)
        params = [normal(*s, seed=i + 9).to(dtype) for i, s in enumerate(SHAPES)]
        m = [0.1 * normal(*s, seed=i + 20).to(moments) for i, s in enumerate(SHAPES)]
        v = [normal(*s, seed=i + 30).square().to(moments) for i, s in enumerate(SHAPES)]
        largest = [normal(*s, seed=i + 40).square().to(moments) for i, s in enumerate(SHAPES)] if amsgrad else None
        states = [params, m, v] + ([largest] if largest else [])
        wanted = [double(state) for state in states]
        options = {
            "lr": LR, "betas": (0.9, 0.99), "eps": EPS, "weight_decay": WEIGHT_DECAY, "lambda_": LAMBDA,
            "scope": scope, "noise_floor": FLOOR * maximize, "maximize": maximize,
        }  # fmt: skip
        reference.project_adamw_(
            wanted[0], double(task), double(general), wanted[1], wanted[2], 5, **options,
            max_exp_avg_sqs=wanted[3] if largest else None,
        )  # fmt: skip
        with running_on(backend):
            entries = functional.project_adamw_(params, task, general, m, v, 5, **options, max_exp_avg_sqs=largest)
        assert_close(entries, reference.gram(double(task), double(general), scope), "formula", acc)
        for got, want in zip(itertools.chain(*states), itertools.chain(*wanted), strict=True):
            assert_close(got, want, "formula", got.dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_sgd(backend: str, dtype: torch.dtype) -> None:
    for scope, nesterov, first, buffered in itertools.product(SCOPES, (False, True), (False, True), (False, True)):
        task, general = gradients(dtype)
        params = [normal(*s, seed=i + 9).to(dtype) for i, s in enumerate(SHAPES)]
        # at the first step nothing of the buffer may be read
        m = [torch.full(s, torch.nan).to(dtype) if first else normal(*s, seed=4).to(dtype) for s in SHAPES]
        wanted, wanted_m = double(params), double(m)
        options = {
            "lr": LR, "momentum": 0.9 * buffered, "dampening": 0.0 if nesterov else 0.1, "weight_decay": WEIGHT_DECAY,
            "nesterov": nesterov, "lambda_": LAMBDA, "scope": scope, "noise_floor": FLOOR * buffered, "first": first,
            "maximize": nesterov,
        }  # fmt: skip
        reference.project_sgd_(wanted, double(task), double(general), wanted_m if buffered else None, **options)
        with running_on(backend):
            functional.project_sgd_(params, task, general, m if buffered else None, **options)
        for got, want in zip(params + m * buffered, wanted + wanted_m * buffered, strict=True):
            assert_close(got, want, "formula", dtype)


def adamw_arguments(dtype: torch.dtype = torch.float32) -> dict[str, object]:
    """All arguments of the operator, by name, in its order."""
    task, general = gradients(dtype)
    zeros = [torch.zeros_like(a) for a in task]
    params, m, v = copies(task, zeros, zeros)
    return {
        "params": params, "task": task, "general": general, "exp_avgs": m, "exp_avg_sqs": v, "max_exp_avg_sqs": [],
        "steps": [torch.tensor(3.0) for _ in task], "entries": empty_entries(task, "tensor"), "coefficients": None,
        "lr_tensor": None, "lr": LR, "beta1": 0.9, "beta2": 0.99, "eps": EPS, "weight_decay": WEIGHT_DECAY,
        "lambda_": 1.0, "noise_floor": 0.0, "scope": 0, "amsgrad": False, "maximize": False, "found_inf": None,
    }  # fmt: skip


@pytest.mark.parametrize("backend", BACKENDS)
def test_found_inf_and_tensor_lr(backend: str) -> None:
    plain, finite, skipped = (adamw_arguments() for _ in range(3))
    finite |= {"found_inf": torch.tensor(0.0), "lr": 0.0, "lr_tensor": torch.tensor(LR, dtype=torch.float64)}
    skipped |= {"found_inf": torch.tensor(1.0)}
    before = adamw_arguments()
    with running_on(backend):
        for arguments in (plain, finite, skipped):
            torch.ops.prograd_fast.project_adamw_(*arguments.values())
    for name in ("params", "exp_avgs", "exp_avg_sqs", "steps"):
        for i, want in enumerate(plain[name]):
            assert torch.equal(finite[name][i], want), name
            assert torch.equal(skipped[name][i], before[name][i]), name
    assert torch.equal(plain["entries"], finite["entries"])
    assert torch.equal(plain["entries"], skipped["entries"])
    assert plain["steps"][0] == 4


@pytest.mark.parametrize("backend", BACKENDS)
def test_given_coefficients_replace_the_conflict_test(backend: str) -> None:
    given, wanted = adamw_arguments(), adamw_arguments(torch.float64)
    coefficients = torch.tensor([[0.5, -0.25], [1, 0], [1, 0], [0, 2], [1, -1], [1, 0.5]])
    combined = [
        alpha * a + beta * b
        for (alpha, beta), a, b in zip(coefficients.double(), wanted["task"], wanted["general"], strict=True)
    ]
    wanted |= {"task": combined, "general": combined}  # a gradient never conflicts with itself
    with running_on("reference"):
        torch.ops.prograd_fast.project_adamw_(*wanted.values())
    with running_on(backend):
        torch.ops.prograd_fast.project_adamw_(*(given | {"coefficients": coefficients}).values())
    assert given["entries"].isnan().all()
    for got, want in zip(given["params"], wanted["params"], strict=True):
        assert_close(got, want, "formula", torch.float32)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("value", [0.0, 1e-30, 1e30, torch.inf, torch.nan])
def test_unusable_general_gradient_changes_nothing(backend: str, value: float) -> None:
    # ‖b‖² is zero, below the smallest normal number, above the largest, infinite, not a number
    a = -torch.ones(100)
    with running_on(backend):
        (projected,) = functional.project([a], [torch.full((100,), value)])
    assert torch.equal(projected, a)


def by_project(around: floors.Around) -> list[Tensor]:
    return functional.project(around.task, around.general, 1.0, SCOPES[around.scope], around.floor)


def by_sgd(around: floors.Around) -> list[Tensor]:
    params = [torch.zeros_like(a) for a in around.task]
    functional.project_sgd_(
        params, around.task, around.general, lr=1.0, scope=SCOPES[around.scope], noise_floor=around.floor, maximize=True
    )
    return params


def by_adamw(around: floors.Around) -> list[Tensor]:
    params, m, v = ([torch.zeros_like(a) for a in around.task] for _ in range(3))
    functional.project_adamw_(
        params, around.task, around.general, m, v, 1, lr=1.0, betas=(0.0, 0.9), scope=SCOPES[around.scope],
        noise_floor=around.floor,
    )  # fmt: skip
    return m


@pytest.mark.parametrize("projected", [by_project, by_sgd, by_adamw])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_noise_floor(backend: str, dtype: torch.dtype, projected: Callable[[floors.Around], list[Tensor]]) -> None:
    with running_on(backend):
        for scope in range(3):
            # rows and tensors of one pass; a tensor of two
            for around in floors.arounds(dtype, scope, [(7,), (2, 40001), (1, 100_000)]):
                floors.check(around, projected)
        floors.check(floors.random_rows(dtype, 500), projected)
        for around in floors.extremes() if dtype == torch.float32 else ():
            floors.check(around, projected)


def test_floored_entries() -> None:
    rows = [[4.0, -1.0, 1.0], [4.0, -1.0, 1.01], [0.0, 0.0, 0.0], [4.0, torch.nan, 1.0], [torch.inf, -1.0, 1.0]]
    rows += [[4.0, -1.0, torch.inf], [torch.nan, -1.0, 1.0], [4.0, -1.0, torch.nan]]
    entries = torch.tensor(rows)
    assert floored(entries, 0.0) is entries
    for floor, absent in ((0.5, 1), (1e30, 2)):  # what is not finite stays, however high the floor
        expected = entries.clone()
        expected[:absent, 1:] = 0
        assert torch.equal(floored(entries, floor).nan_to_num(7.0), expected.nan_to_num(7.0))
    assert torch.equal(reference.conflict_coefficients(entries[:3]), torch.tensor([-1.0, -1 / 1.01, 0.0]))
    assert torch.equal(reference.conflict_coefficients(entries[:3], 0.5), torch.tensor([0.0, -1 / 1.01, 0.0]))


@pytest.mark.parametrize("floor", [-1e-9, torch.inf, torch.nan])
def test_a_floor_that_is_none(floor: float) -> None:
    ones = [torch.ones(2)]
    for refused in (
        lambda: functional.project(ones, ones, noise_floor=floor),
        lambda: functional.project_sgd_(ones, ones, ones, lr=0.1, noise_floor=floor),
        lambda: functional.project_adamw_(ones, ones, ones, ones, ones, 1, lr=0.1, noise_floor=floor),
    ):
        with pytest.raises(ValueError, match="noise_floor: expected a number of at least 0, got"):
            refused()
    assert torch.equal(ones[0], torch.ones(2))


@pytest.mark.parametrize("backend", BACKENDS)
def test_any_strides_and_dtypes(backend: str) -> None:
    # transposed, every second column, expanded, a view into a bigger buffer, and a gradient of another dtype
    def of(seed: int) -> list[Tensor]:
        x = normal(6, 8, seed=seed, dtype=torch.float32)
        return [x.clone().T, x.clone()[:, ::2], x.clone()[1:], x.clone()]

    task, general = of(1), of(2)
    task[1] = task[1][:1, :1].expand(6, 4)
    task[3] = task[3].bfloat16()
    params, m, v = of(3), of(4), [t.abs() for t in of(5)]
    wanted = [double(tensors) for tensors in (params, m, v)]
    reference.project_adamw_(wanted[0], double(task), double(general), wanted[1], wanted[2], 2, lr=LR)
    with running_on(backend):
        functional.project_adamw_(params, task, general, m, v, 2, lr=LR)
    for got, want in zip(params + m + v, itertools.chain(*wanted), strict=True):
        assert_close(got, want, "formula", torch.float32)


def test_a_step_without_conflict_is_that_of_fused_adamw() -> None:
    # bit for bit on the CPU kernels: the same roundings, in the same order
    ours, theirs = adamw_arguments(), adamw_arguments()
    for _ in range(5):
        coefficients = torch.tensor([[1.0, 0.0]]).expand(len(SHAPES), 2)
        torch.ops.prograd_fast.project_adamw_(*(ours | {"coefficients": coefficients}).values())
        torch._foreach_add_(theirs["steps"], 1)
        lists = (theirs[name] for name in ("params", "task", "exp_avgs", "exp_avg_sqs"))
        torch._fused_adamw_(
            *lists, [], theirs["steps"], lr=LR, beta1=0.9, beta2=0.99, eps=EPS, weight_decay=WEIGHT_DECAY,
            amsgrad=False, maximize=False,
        )  # fmt: skip
    for got, want in zip(ours["params"], theirs["params"], strict=True):
        if "cpu" in BACKENDS:
            assert torch.equal(got, want)
        assert_close(got, want, "formula", torch.float32)


@pytest.mark.parametrize("scope", range(3))
def test_any_number_of_threads_gives_the_same_bits(scope: int) -> None:
    # enough elements for several threads; chunks of one tensor, whole tensors, and rows among them
    shapes = [(300001,), (60, 1000), (10,), (3, 70001)]
    results = []
    for count in (1, 2, 1, 3):
        task, general = gradients(torch.float32, shapes)
        params, m, v = copies(task, task, [a.abs() for a in task])
        with threads(count):
            entries = functional.project_adamw_(params, task, general, m, v, 1, lr=LR, scope=SCOPES[scope])
        results.append([entries, *params, *m, *v])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_company_does_not_change_the_bits() -> None:
    # 100000 elements alone are summed by all threads, and updated afterwards; among others by one thread in one go
    results = []
    for shapes in ([(100_000,)], [(100_000,), (300_000,)]):
        task, general = gradients(torch.float32, shapes)
        params, m, v = copies(task, task, [a.abs() for a in task])
        entries = functional.project_adamw_(params, task, general, m, v, 1, lr=LR)
        results.append([entries[0], params[0], m[0], v[0]])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_writes_are_counted_on_both_ways() -> None:
    # autograd refuses a backward through a saved tensor that was changed since, whichever way the step took
    for direct in (False, True):
        arguments = adamw_arguments()
        saved = arguments["params"][3].requires_grad_()
        loss = saved.square().sum()
        with torch.no_grad():
            if direct:
                functional.project_adamw_(
                    arguments["params"], arguments["task"], arguments["general"], arguments["exp_avgs"],
                    arguments["exp_avg_sqs"], 1, lr=LR,
                )  # fmt: skip
            else:
                torch.ops.prograd_fast.project_adamw_(*arguments.values())
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"general": [None]}, ValueError, "general: expected one gradient"),
        ({"scope": "column"}, ValueError, "scope: expected one of tensor, row, global"),
        ({"exp_avgs": [torch.zeros(3)] * 2}, ValueError, "exp_avgs\\[0\\]: expected the parameter's shape"),
        ({"exp_avg_sqs": []}, ValueError, "exp_avg_sqs: expected one tensor per parameter, got 0 for 2"),
        ({"task": [torch.zeros(2).long()] * 2}, TypeError, "task\\[0\\]: expected a real floating-point gradient"),
    ],
)
def test_bad_arguments_change_nothing(change: dict[str, object], error: type[Exception], message: str) -> None:
    def twos() -> list[Tensor]:
        return [torch.ones(2), torch.ones(2)]

    arguments = {name: twos() for name in ("params", "task", "general", "exp_avgs", "exp_avg_sqs")} | {"step": 1}
    with pytest.raises(error, match=message):
        functional.project_adamw_(**(arguments | change), lr=LR)
    assert all(torch.equal(p, torch.ones(2)) for p in arguments["params"])


@pytest.mark.parametrize("backend", BACKENDS)
def test_step_counters_below_zero(backend: str) -> None:
    """The formula of a parameter is that of the one before it only where there is one."""
    states = []
    for name in (backend, "reference"):
        p, a, b, m, v = ([torch.full((3,), value)] for value in (1.0, 2.0, 3.0, 0.5, 0.25))
        rest = (torch.zeros(1, 3), None, None, 0.1, 0.9, 0.99, 1e-8, 0.0, 1.0, 0.0, 0, False, False, None)
        with running_on(name):
            torch.ops.prograd_fast.project_adamw_(p, a, b, m, v, [], [torch.tensor(-2.0)], *rest)
        states.append((m[0], v[0]))
    for got, want in zip(*states, strict=True):
        assert_close(got, want, "formula", torch.float32)
