"""The CUDA kernels on lists of tensors, executed on the CPU by simt.h, against the reference in float64."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from prograd_fast.ops.common import SCOPES
from prograd_fast.reference import projection
from tests.gpu.simt.build import changed_sources, compiler
from tests.gpu.simt.library import ORDERS, STORAGES, Guarded, Library, accumulation
from tests.gpu.simt.updates import (
    CHUNK,
    GLOBAL,
    ROW,
    TENSOR,
    Update,
    check_gram,
    check_update,
    empty_entries,
    gradients,
)
from tests.tolerances import assert_close

pytestmark = pytest.mark.skipif(compiler() is None, reason="no C++ compiler: the CUDA kernels cannot run on the CPU")
SCHEDULES = [(order, seed) for seed, order in enumerate(ORDERS)]
SHAPES: list[tuple[int, ...]] = [(1,), (), (0,), (3, 5), (16, 33), (7, 1201), (2, CHUNK + 1)]
MANY: list[tuple[int, ...]] = [(n,) for n in range(1, 42)] + [(CHUNK + 3,)]  # more than one table holds


@pytest.fixture(scope="module")
def simt() -> Library:
    return Library()


@pytest.mark.parametrize("scope", [TENSOR, ROW, GLOBAL])
@pytest.mark.parametrize("dtype", STORAGES)
def test_gram(simt: Library, dtype: torch.dtype, scope: int) -> None:
    for order, seed in SCHEDULES:
        simt.schedule(order, seed)
        check_gram(simt, SHAPES, dtype, scope, shift=seed)


@pytest.mark.parametrize("scope", [TENSOR, GLOBAL])
def test_gram_of_more_tensors_than_one_launch_takes(simt: Library, scope: int) -> None:
    for order, seed in SCHEDULES:
        simt.schedule(order, seed)
        check_gram(simt, MANY, torch.float32, scope, shift=0)


def test_gram_is_the_same_under_every_schedule(simt: Library) -> None:
    results = []
    for order, seed in SCHEDULES:
        simt.schedule(order, seed, resident_blocks=1 + 5 * seed)
        results.append(check_gram(simt, [(5 * CHUNK + 7,), (33,)], torch.float32, GLOBAL, shift=0))
    assert all(torch.equal(results[0], other) for other in results[1:])


def test_gram_of_a_tensor_does_not_depend_on_its_neighbours(simt: Library) -> None:
    task, general = gradients([(1000,), (3 * CHUNK + 5,), (40,)], torch.float32)
    together = empty_entries(task, TENSOR)
    simt.gram_out(task, general, TENSOR, entries=together)
    for a, b, entries in zip(task, general, together, strict=True):
        alone = empty_entries([a], TENSOR)
        simt.gram_out([a], [b], TENSOR, entries=alone)
        assert torch.equal(alone[0], entries)


@pytest.mark.parametrize("scope", [TENSOR, ROW, GLOBAL])
@pytest.mark.parametrize("dtype", STORAGES)
def test_project(simt: Library, dtype: torch.dtype, scope: int) -> None:
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


def test_project_leaves_what_has_no_conflict_bit_for_bit(simt: Library) -> None:
    task, general = [torch.tensor([-0.0, 1.0, math.nan, math.inf])], [torch.full((4,), math.nan)]
    before = task[0].clone()
    simt.project_(task, general, torch.tensor([[1.0, 0.0]]), TENSOR)
    assert torch.equal(task[0].view(torch.int32), before.view(torch.int32))


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("scope", [TENSOR, ROW, GLOBAL])
@pytest.mark.parametrize("dtype", STORAGES)
def test_update(simt: Library, dtype: torch.dtype, scope: int, optimizer: str) -> None:
    for order, seed in SCHEDULES:
        simt.schedule(order, seed)
        check_update(simt, optimizer, SHAPES, dtype, scope, shift=seed)


OPTIONS: list[dict[str, Any]] = [
    {"given": True},
    {"amsgrad": True, "maximize": True},
    {"momentum": 0.0},
    {"first": True},
    {"nesterov": True, "maximize": True},
    {"lr_tensor": True, "grad_scale": 8.0, "found_inf": 0.0},
    {"grad_scale": 8.0, "found_inf": 1.0},
]


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(options))
def test_update_options(simt: Library, options: dict[str, Any], optimizer: str) -> None:
    check_update(simt, optimizer, SHAPES, torch.float32, TENSOR, **options)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_update_with_moments_in_float32(simt: Library, dtype: torch.dtype, optimizer: str) -> None:
    for shift in (0, 1):
        check_update(simt, optimizer, SHAPES, dtype, TENSOR, moments=torch.float32, shift=shift)


@pytest.mark.parametrize("scope", [TENSOR, GLOBAL])
def test_update_of_more_tensors_than_one_launch_takes(simt: Library, scope: int) -> None:
    check_update(simt, "adamw", MANY, torch.float32, scope)


# both gradients are read once: by one block, or kept by every block of a grid that waits; the third grid is too small
# to keep them and reads them again
WAYS = [([(16, 512)], 8), ([(65536,)], 8), ([(3 * CHUNK,), (40,), (100,), (9,), (2 * CHUNK,)], 2)]


@pytest.mark.parametrize(("shapes", "resident_blocks"), WAYS, ids=["block", "grid", "small-grid"])
def test_one_launch_does_it_all(simt: Library, shapes: list[tuple[int, ...]], resident_blocks: int) -> None:
    for order, seed in SCHEDULES:
        simt.schedule(order, seed, resident_blocks)
        simt.launches()
        check_update(simt, "adamw", shapes, torch.float32, TENSOR)
        assert simt.launches() == 1


def test_large_lists_take_two_launches(tmp_path: Path) -> None:
    threshold = "kOneLaunch = int64_t(1) << 22"  # more than the tests have time for
    simt = Library(changed_sources("update.cuh", threshold, "kOneLaunch = 2 * kChunk", tmp_path), "gradients")
    for order, seed in SCHEDULES:
        simt.schedule(order, seed)
        simt.launches()
        check_update(simt, "adamw", [(3 * CHUNK + 5,), (40,)], torch.float32, TENSOR)
        assert simt.launches() == 2


def test_a_general_gradient_of_no_use_changes_nothing(simt: Library) -> None:
    for poison in (0.0, math.nan, math.inf, 1e-25):
        update = Update("sgd", [(100,)], torch.float32, TENSOR)
        update.general = [torch.full((100,), poison)]
        update.run(simt)
        update.general, update.coefficients = [torch.zeros(100)], torch.tensor([[1.0, 0.0]])
        update.new_entries = torch.full((1, 3), math.nan)
        update.check()
