"""The CUDA kernels of Gram entries and projection, run on the CPU by simt.h, against a float64 reference."""

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from prograd_fast.ops import projection
from prograd_fast.ops.common import SCOPES
from tests.gpu.simt.build import compiler
from tests.gpu.simt.faults import Fault, assert_found, planted, run_case
from tests.gpu.simt.library import SCHEDULES, STORAGES, Guarded, Library, accumulation, pointer, storage_of
from tests.gpu.simt.tensor_lists import (
    CHUNK,
    GLOBAL,
    MANY,
    ROW,
    SHAPES,
    TENSOR,
    doubled,
    empty_entries,
    gradients,
    tensor_list,
)
from tests.tolerances import assert_close

pytestmark = pytest.mark.skipif(compiler() is None, reason="no C++ compiler: the CUDA kernels cannot run on the CPU")


class Projection(Library):
    stem = "projection"

    def gram_out(self, task: list[Tensor], general: list[Tensor], scope: int, *, entries: Tensor) -> None:
        tensors = tensor_list(scope, task, general)
        self.call("gram", storage_of(task[0]), tensors, len(task), scope, pointer(entries))

    def project_(self, task: list[Tensor], general: list[Tensor], coefficients: Tensor, scope: int) -> None:
        tensors = tensor_list(scope, task, general)
        storage = storage_of(task[0])
        self.call("project", storage, tensors, len(task), scope, pointer(coefficients))


def check_gram(
    simt: Projection, shapes: Sequence[tuple[int, ...]], dtype: torch.dtype, scope: int, shift: int
) -> Tensor:
    task, general = gradients(shapes, dtype)
    guarded = Guarded(shift)
    entries = guarded(empty_entries(task, scope))
    simt.gram_out(guarded.list(task), guarded.list(general), scope, entries=entries)
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
def test_gram_of_more_tensors_than_one_launch_takes(simt: Projection, scope: int) -> None:
    for order, seed in SCHEDULES:
        simt.schedule(order, seed)
        check_gram(simt, MANY, torch.float32, scope, shift=0)


def test_gram_is_the_same_under_every_schedule(simt: Projection) -> None:
    results = []
    for order, seed in SCHEDULES:
        simt.schedule(order, seed, resident_blocks=1 + 5 * seed)
        results.append(check_gram(simt, [(5 * CHUNK + 7,), (33,)], torch.float32, GLOBAL, shift=0))
    assert all(torch.equal(results[0], other) for other in results[1:])


def test_gram_of_a_tensor_does_not_depend_on_its_neighbours(simt: Projection) -> None:
    task, general = gradients([(1000,), (3 * CHUNK + 5,), (40,)], torch.float32)
    together = empty_entries(task, TENSOR)
    simt.gram_out(task, general, TENSOR, entries=together)
    for a, b, entries in zip(task, general, together, strict=True):
        alone = empty_entries([a], TENSOR)
        simt.gram_out([a], [b], TENSOR, entries=alone)
        assert torch.equal(alone[0], entries)


@pytest.mark.parametrize("scope", [TENSOR, ROW, GLOBAL])
@pytest.mark.parametrize("dtype", STORAGES)
def test_project(simt: Projection, dtype: torch.dtype, scope: int) -> None:
    task, general = gradients(SHAPES, dtype)
    units = empty_entries(task, scope).shape[0]
    coefficients = torch.randn(units, 2, dtype=accumulation(dtype))
    for order, seed in SCHEDULES:
        simt.schedule(order, seed)
        guarded = Guarded(seed)
        result = guarded.list(task)
        simt.project_(result, guarded.list(general), coefficients, scope)
        guarded.check()
        parts = projection.split_units(coefficients.double(), task, SCOPES[scope])
        for got, a, b, c in zip(result, task, general, parts, strict=True):
            assert_close(got, projection.combine(a.double(), b.double(), c), "formula", dtype)


def test_project_leaves_what_has_no_conflict_bit_for_bit(simt: Projection) -> None:
    task, general = [torch.tensor([-0.0, 1.0, math.nan, math.inf])], [torch.full((4,), math.nan)]
    before = task[0].clone()
    simt.project_(task, general, torch.tensor([[1.0, 0.0]]), TENSOR)
    assert torch.equal(task[0].view(torch.int32), before.view(torch.int32))


FAULTS = {
    "wrong last block": Fault("reduce.cuh", "== blocks - 1", "== blocks - 2"),
    "wrong start of a shuffle tree": Fault("reduce.cuh", "offset = kWarp / 2", "offset = kWarp / 4"),
    "divergent collective": Fault(
        "reduce.cuh",
        "value = merge(value, shuffle(value, offset));",
        "if (int(threadIdx.x) % kWarp < 2 * offset) value = merge(value, shuffle(value, offset));",
        says="deadlock",
    ),
}


def small_case(simt: Projection, seed: int) -> None:
    check_gram(simt, [(3 * CHUNK,)], torch.float32, TENSOR, shift=0)


@planted(FAULTS)
def test_planted_faults_are_found(fault: str, tmp_path: Path) -> None:
    assert_found(FAULTS[fault], Projection, small_case, tmp_path)


def test_nothing_is_found_without_a_fault(simt: Projection) -> None:
    run_case(simt, small_case)
