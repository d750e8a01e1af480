"""The CUDA kernels of Gram entries and projection, run on the CPU by simt.h, against a float64 reference."""

import math
from collections.abc import Sequence
from ctypes import byref
from pathlib import Path

import pytest
import torch
from torch import Tensor

from prograd_fast.ops import projection
from prograd_fast.ops.common import SCOPES
from tests.gpu.simt.build import compiler
from tests.gpu.simt.faults import Fault, assert_found, planted, run_case
from tests.gpu.simt.library import MANY_SCHEDULES, SCHEDULES, STORAGES, Guarded, Library, draw, pointer, storage_of
from tests.gpu.simt.tensor_lists import (
    CHUNK,
    GLOBAL,
    MANY,
    ROW,
    SHAPES,
    TENSOR,
    ProjectionStruct,
    doubled,
    empty_entries,
    gradients,
    many_shapes,
    tensor_list,
)
from tests.tolerances import assert_close

pytestmark = pytest.mark.skipif(compiler() is None, reason="no C++ compiler: the CUDA kernels cannot run on the CPU")


class Projection(Library):
    stem = "projection"

    def gram_out(self, task: list[Tensor], general: list[Tensor], scope: int, *, entries: Tensor) -> None:
        tensors = tensor_list(scope, task, general)
        self.call("gram", storage_of(task[0]), tensors, len(task), scope, pointer(entries))

    def project_out(
        self,
        task: list[Tensor],
        general: list[Tensor],
        coefficients: Tensor | None,
        lambda_: float,
        noise_floor: float,
        scope: int,
        *,
        entries: Tensor,
        projected: list[Tensor],
    ) -> None:
        tensors = tensor_list(scope, task, general, projected)
        rule = ProjectionStruct(scope, pointer(coefficients), pointer(entries), lambda_, noise_floor, None, False)
        self.call("project", storage_of(task[0]), tensors, len(task), byref(rule))


def check_gram(
    simt: Projection, shapes: Sequence[tuple[int, ...]], dtype: torch.dtype, scope: int, shift: int
) -> Tensor:
    task, general = gradients(shapes, dtype)
    guarded = Guarded(shift)
    entries = guarded(empty_entries(task, scope))
    simt.gram_out(guarded.inputs(task), guarded.inputs(general), scope, entries=entries)
    guarded.check()
    assert_close(
        entries, projection.gram_formula(doubled(task), doubled(general), SCOPES[scope]), "formula", entries.dtype
    )
    return entries


@pytest.fixture(scope="module")
def simt() -> Projection:
    return Projection()


@pytest.mark.parametrize("scope", [TENSOR, ROW, GLOBAL])
@pytest.mark.parametrize("dtype", STORAGES)
def test_gram(simt: Projection, dtype: torch.dtype, scope: int) -> None:
    for order, seed in SCHEDULES:
        simt.schedule(order, seed)
        check_gram(simt, SHAPES, dtype, scope, shift=seed)


@pytest.mark.parametrize("scope", [TENSOR, GLOBAL])
def test_gram_of_more_tensors_than_the_small_table_holds(simt: Projection, scope: int) -> None:
    for order, seed in SCHEDULES:
        simt.schedule(order, seed)
        check_gram(simt, MANY, torch.float32, scope, shift=0)


def check_schedules(simt: Projection) -> None:
    """Gram entries do not depend on which block comes last, as a sum that begins there would."""
    results = []
    for number, (order, seed) in enumerate(MANY_SCHEDULES):
        simt.schedule(order, seed, resident_blocks=1 + 5 * number % 11)
        results.append(check_gram(simt, [(13 * CHUNK,), (5,)], torch.float32, GLOBAL, shift=0))
    assert all(torch.equal(results[0], other) for other in results[1:]), "results differ between schedules"


def test_gram_is_the_same_under_every_schedule(simt: Projection) -> None:
    check_schedules(simt)


def test_gram_of_a_tensor_does_not_depend_on_its_neighbours(simt: Projection) -> None:
    task, general = gradients([(1000,), (3 * CHUNK + 5,), (40,)], torch.float32)
    together = empty_entries(task, TENSOR)
    simt.gram_out(task, general, TENSOR, entries=together)
    for a, b, entries in zip(task, general, together, strict=True):
        alone = empty_entries([a], TENSOR)
        simt.gram_out([a], [b], TENSOR, entries=alone)
        assert torch.equal(alone[0], entries)


def check_project(
    simt: Projection,
    shapes: Sequence[tuple[int, ...]],
    dtype: torch.dtype,
    scope: int,
    *,
    given: bool = False,
    in_place: bool = False,
    floor: float = 0.0,
    shift: int = 0,
) -> list[Tensor]:
    task, general = gradients(shapes, dtype)
    wide = doubled(task), doubled(general)
    guarded = Guarded(shift)
    entries = guarded(empty_entries(task, scope))
    read = guarded.list(task) if in_place else guarded.inputs(task)
    results = read if in_place else guarded.list([torch.full_like(a, math.nan) for a in task])
    expected_entries = projection.gram_formula(*wide, SCOPES[scope])
    if given:
        coefficients = draw(entries.shape[0], 2, dtype=entries.dtype)
        coefficients[::3] = torch.tensor([1.0, 0.0])
    else:
        coefficients = projection.prograd_coefficients(expected_entries, 0.7, floor)
    simt.project_out(
        read, guarded.inputs(general), guarded.input(coefficients) if given else None, 0.7, floor, scope,
        entries=entries, projected=results,
    )  # fmt: skip
    guarded.check()
    if given:
        assert entries.isnan().all(), "entries are left alone where coefficients are given"
    else:
        assert_close(entries, expected_entries, "formula", entries.dtype)
    parts = projection.split_units(coefficients.double(), task, SCOPES[scope])
    for got, a, b, c in zip(results, *wide, parts, strict=True):
        assert_close(got, projection.combine(a, b, c), "formula", dtype, None if given else a)
    return results


@pytest.mark.parametrize("scope", [TENSOR, ROW, GLOBAL])
@pytest.mark.parametrize("dtype", STORAGES)
def test_project(simt: Projection, dtype: torch.dtype, scope: int) -> None:
    for order, seed in SCHEDULES:
        simt.schedule(order, seed)
        check_project(simt, SHAPES, dtype, scope, in_place=seed == 2, shift=seed)
    for in_place in (False, True):
        check_project(simt, SHAPES, dtype, scope, given=True, in_place=in_place)


@pytest.mark.parametrize("count", [1, 40, 41, 400])
@pytest.mark.parametrize("scope", [TENSOR, ROW, GLOBAL])
def test_one_launch_for_many_tensors(simt: Projection, scope: int, count: int) -> None:
    shapes = many_shapes(count)
    simt.launches()
    check_gram(simt, shapes, torch.float32, scope, shift=0)
    assert simt.launches() == (2 if scope == GLOBAL and count > 1 else 1)  # tickets of the sum over all are cleared
    check_project(simt, shapes, torch.float32, scope)
    assert simt.launches() == 1


@pytest.mark.parametrize("scope", [TENSOR, GLOBAL])
def test_a_launch_for_each_400_tensors(simt: Projection, scope: int) -> None:
    shapes = [*many_shapes(400), (CHUNK + 3,)]
    simt.launches()
    check_gram(simt, shapes, torch.float32, scope, shift=0)
    assert simt.launches() == 3  # tickets of the last tensor's sum are cleared
    check_project(simt, shapes, torch.float32, scope)
    assert simt.launches() == (5 if scope == GLOBAL else 2)


def test_project_with_a_noise_floor(simt: Projection) -> None:
    check_project(simt, SHAPES, torch.float32, TENSOR, floor=1.0)


# as the updates: by one block; by a grid that waits; by one too small to keep both gradients
WAYS = [([(16, 512)], 8), ([(65536,)], 8), ([(3 * CHUNK,), (40,), (100,), (9,), (2 * CHUNK,)], 2)]


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize(("shapes", "resident_blocks"), WAYS, ids=["block", "grid", "small-grid"])
def test_one_launch_does_it_all(
    simt: Projection, shapes: list[tuple[int, ...]], resident_blocks: int, in_place: bool
) -> None:
    results = []
    for order, seed in SCHEDULES:
        simt.schedule(order, seed, resident_blocks)
        simt.launches()
        results.append(check_project(simt, shapes, torch.float32, TENSOR, in_place=in_place))
        assert simt.launches() == 1
        check_project(simt, shapes, torch.float32, TENSOR, given=True, in_place=in_place)
        assert simt.launches() == 1
    for other in results[1:]:
        assert all(torch.equal(x, y) for x, y in zip(results[0], other, strict=True))


def test_project_leaves_what_has_no_conflict_bit_for_bit(simt: Projection) -> None:
    task, general = [torch.tensor([-0.0, 1.0, math.nan, math.inf])], [torch.full((4,), math.nan)]
    for projected in ([torch.zeros(4)], [task[0].clone()]):
        read = projected if projected[0][1] == 1 else task
        for coefficients in (None, torch.tensor([[1.0, 0.0]])):
            entries = torch.zeros(1, 3)
            simt.project_out(read, general, coefficients, 1.0, 0.0, TENSOR, entries=entries, projected=projected)
            assert torch.equal(projected[0].view(torch.int32), task[0].view(torch.int32))


FAULTS = {
    "wrong last block": Fault("reduce.cuh", "== blocks - 1", "== blocks - 2"),
    "no fence before the ticket": Fault(
        "reduce.cuh", "    __threadfence();\n    last = ", "    last = ", says="an atomic without a __threadfence"
    ),
    "no fence after the ticket": Fault(
        "reduce.cuh", "== blocks - 1;\n    __threadfence();", "== blocks - 1;", says="a barrier without a __threadfence"
    ),
    "wrong start of a shuffle tree": Fault("reduce.cuh", "offset = kWarp / 2", "offset = kWarp / 4"),
    "divergent collective": Fault(
        "reduce.cuh",
        "value = merge(value, shuffle(value, offset));",
        "if (int(threadIdx.x) % kWarp < 2 * offset) value = merge(value, shuffle(value, offset));",
        says="deadlock",
    ),
    "written over the task gradient": Fault(
        "projection.cuh",
        "static_cast<T*>(tensor.param) + at, g",
        "static_cast<T*>(const_cast<void*>(tensor.task)) + at, g",
        says="wrote .* into tensor",
    ),
    "nothing written without a conflict": Fault("projection.cuh", " && tensor.param == tensor.task", ""),
    "alpha in place of beta": Fault(
        "projection.cuh", "plan.coefficients[2 * chunk.unit + 1]", "plan.coefficients[2 * chunk.unit]"
    ),
}


def small_case(simt: Projection, seed: int) -> None:
    check_gram(simt, [(3 * CHUNK,)], torch.float32, TENSOR, shift=0)
    check_project(simt, [(6 * CHUNK,), (40,)], torch.float32, TENSOR)
    check_project(simt, [(3 * CHUNK,), (40,)], torch.float32, TENSOR, given=True, in_place=True)


FAULTS_OF_ORDER = {
    "sum from the block that came last": Fault(
        "projection.cuh",
        "read_entries(partials, chunk.first + i)",
        "read_entries(partials, chunk.first + (i + chunk.index - chunk.first) % chunk.number)",
        says="results differ",
    ),
}


@planted(FAULTS_OF_ORDER)
def test_planted_faults_of_the_order_of_sums_are_found(fault: str, tmp_path: Path) -> None:
    assert_found(FAULTS_OF_ORDER[fault], Projection, lambda simt, seed: check_schedules(simt), tmp_path)


@planted(FAULTS)
def test_planted_faults_are_found(fault: str, tmp_path: Path) -> None:
    assert_found(FAULTS[fault], Projection, small_case, tmp_path)


def test_nothing_is_found_without_a_fault(simt: Projection) -> None:
    run_case(simt, small_case)
