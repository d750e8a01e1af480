"""The CUDA kernels of AdamW and SGD with projected gradients, run on the CPU by simt.h, against a float64 reference."""

import math
from collections.abc import Callable, Sequence
from ctypes import Structure, byref, c_bool, c_double, c_void_p
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from prograd_fast.ops import projection, updates
from prograd_fast.ops.common import SCOPES
from prograd_fast.ops.updates import AdamWCall, SGDCall
from tests.gpu.simt.build import changed_sources, compiler
from tests.gpu.simt.faults import Fault, assert_found, planted, run_case
from tests.gpu.simt.library import SCHEDULES, STORAGES, Guarded, Library, pointer, storage_of
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
from tests.ops import floors
from tests.tolerances import assert_close

pytestmark = pytest.mark.skipif(compiler() is None, reason="no C++ compiler: the CUDA kernels cannot run on the CPU")
SETTINGS: dict[str, Any] = {"lr": 0.1, "beta1": 0.8, "beta2": 0.95, "eps": 1e-3, "weight_decay": 0.3}
FLOOR = 1.12  # in the midst of the ratios ‖b‖/‖a‖ of `gradients`


class LearningRate(Structure):
    _fields_ = (("value", c_double), ("tensor", c_void_p))


class AdamWSettings(Structure):
    _fields_ = (
        ("lr", LearningRate),
        ("beta1", c_double),
        ("beta2", c_double),
        ("eps", c_double),
        ("weight_decay", c_double),
    )


class SGDSettings(Structure):
    _fields_ = (
        ("lr", LearningRate),
        ("momentum", c_double),
        ("dampening", c_double),
        ("weight_decay", c_double),
        ("nesterov", c_bool),
        ("first", c_bool),
    )


class Updates(Library):
    stem = "updates"
    needs = ("projection.cu",)

    def project_adamw_(self, *args: Any) -> None:
        call = AdamWCall(*args)
        assert bool(call.max_exp_avg_sqs) == call.amsgrad
        states = [call.exp_avgs, call.exp_avg_sqs, call.max_exp_avg_sqs]
        settings = AdamWSettings(rate_of(call), call.beta1, call.beta2, call.eps, call.weight_decay)
        self._update("adamw", call, states, settings, call.steps)

    def project_sgd_(self, *args: Any) -> None:
        call = SGDCall(*args)
        settings = SGDSettings(
            rate_of(call), call.momentum, call.dampening, call.weight_decay, call.nesterov, call.first
        )
        self._update("sgd", call, [call.momentum_buffers], settings)

    def _update(
        self,
        name: str,
        call: AdamWCall | SGDCall,
        states: list[list[Tensor]],
        settings: Structure,
        *steps: list[Tensor],
    ) -> None:
        tensors = tensor_list(call.scope, call.task, call.general, call.params, states, *steps)
        projection = ProjectionStruct(
            call.scope,
            pointer(call.coefficients),
            pointer(call.entries),
            call.lambda_,
            call.noise_floor,
            pointer(call.found_inf),
            call.maximize,
        )
        storages = (storage_of(call.params[0]), storage_of((states[0] or call.params)[0]))
        self.call(name, *storages, tensors, len(call.task), byref(projection), byref(settings))


def rate_of(call: AdamWCall | SGDCall) -> LearningRate:
    """The learning rate as the kernels take it: a number, or where it is in memory."""
    return LearningRate(call.lr, pointer(call.lr_tensor))


class Update:
    """Everything that one fused step reads and writes, and the same step by the reference in float64."""

    def __init__(
        self,
        optimizer: str,
        shapes: Sequence[tuple[int, ...]],
        dtype: torch.dtype,
        scope: int,
        *,
        moments: torch.dtype | None = None,
        given: bool = False,
        amsgrad: bool = False,
        momentum: float = 0.9,
        first: bool = False,
        nesterov: bool = False,
        maximize: bool = False,
        lr_tensor: bool = False,
        noise_floor: float = 0.0,
        found_inf: float | None = None,
        shift: int = 0,
    ) -> None:
        self.__dict__ |= {k: v for k, v in locals().items() if k != "self"}
        self.task, self.general = gradients(shapes, dtype)
        generator = torch.Generator().manual_seed(7)
        self.params = [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]
        n_states = (3 if amsgrad else 2) if optimizer == "adamw" else int(momentum != 0)
        self.states = [
            [torch.rand(shape, generator=generator).to(moments or dtype) for shape in shapes] for _ in range(n_states)
        ]
        self.steps = [torch.tensor(float(3 * i)) for i in range(len(shapes))] if optimizer == "adamw" else []
        self.entries = empty_entries(self.task, scope)
        units = self.entries.shape[0]
        self.coefficients = torch.randn(units, 2, dtype=self.entries.dtype, generator=generator) if given else None

    def run(self, simt: Updates) -> None:
        """By the kernel, in place."""
        guarded = Guarded(self.shift)
        self.results = [guarded.list(tensors) for tensors in (self.params, *self.states)]
        self.new_entries, self.new_steps = guarded(self.entries), guarded.list(self.steps)
        gradients = guarded.inputs(self.task), guarded.inputs(self.general)
        found_inf = None if self.found_inf is None else guarded.input(torch.tensor(self.found_inf))
        lr_tensor = guarded.input(torch.tensor(SETTINGS["lr"])) if self.lr_tensor else None
        coefficients = None if self.coefficients is None else guarded.input(self.coefficients)
        lr = -99.0 if self.lr_tensor else SETTINGS["lr"]
        common = (self.new_entries, coefficients, lr_tensor, lr)
        projected = (0.7, self.noise_floor)
        if self.optimizer == "adamw":
            states = [*self.results[1:], *([] if self.amsgrad else [[]])]
            numbers = (SETTINGS["beta1"], SETTINGS["beta2"], SETTINGS["eps"], SETTINGS["weight_decay"])
            flags = (self.scope, self.amsgrad, self.maximize, found_inf)
            simt.project_adamw_(
                self.results[0], *gradients, *states, self.new_steps, *common, *numbers, *projected, *flags
            )
        else:
            states = self.results[1:] or [[]]
            numbers = (self.momentum, 0.25, SETTINGS["weight_decay"])
            flags = (self.scope, self.nesterov, self.maximize, self.first, found_inf)
            simt.project_sgd_(self.results[0], *gradients, *states, *common, *numbers, *projected, *flags)
        guarded.check()

    def check(self) -> None:
        """Against the reference."""
        scope = SCOPES[self.scope]
        task, general = doubled(self.task), doubled(self.general)
        expected_entries = projection.gram_formula(task, general, scope)
        if self.coefficients is None:
            assert_close(self.new_entries, expected_entries, "formula", self.entries.dtype)
            coefficients = projection.prograd_coefficients(expected_entries, 0.7, self.noise_floor)
        else:
            assert self.new_entries.isnan().all(), "entries are left alone where coefficients are given"
            coefficients = self.coefficients.double()
        parts = projection.split_units(coefficients, self.task, scope)
        for i, (a, b, c) in enumerate(zip(task, general, parts, strict=True)):
            g = projection.combine(a, b, c)
            old = [tensors[i].double() for tensors in (self.params, *self.states)]
            new = self._expected(i, -g if self.maximize else g, old)
            if self.found_inf:
                new = old
            for result, value in zip(self.results, new, strict=True):
                assert_close(result[i], value, "formula", result[i].dtype)
        advance = 0 if self.found_inf else 1
        assert [float(s) for s in self.new_steps] == [float(s) + advance for s in self.steps], "wrong steps"

    def _expected(self, i: int, g: Tensor, old: list[Tensor]) -> list[Tensor]:
        if self.optimizer == "adamw":
            p, m, v, largest = [*old, None][:4]
            betas = (SETTINGS["beta1"], SETTINGS["beta2"])
            numbers = {name: SETTINGS[name] for name in ("lr", "eps", "weight_decay")}
            step = self.steps[i].double() + 1
            new = updates.adamw(p, g, m, v, largest, step, betas=betas, **numbers)
        else:
            new = updates.sgd(
                old[0],
                g,
                old[1] if self.states else None,
                lr=SETTINGS["lr"],
                momentum=self.momentum,
                dampening=0.25,
                weight_decay=SETTINGS["weight_decay"],
                nesterov=self.nesterov,
                first=self.first,
            )
        return [tensor for tensor in new if tensor is not None]


def check_update(simt: Updates, *args: Any, **options: Any) -> None:
    update = Update(*args, **options)
    update.run(simt)
    update.check()


@pytest.fixture(scope="module")
def simt() -> Updates:
    return Updates()


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("scope", [TENSOR, ROW, GLOBAL])
@pytest.mark.parametrize("dtype", STORAGES)
def test_update(simt: Updates, dtype: torch.dtype, scope: int, optimizer: str) -> None:
    for order, seed in SCHEDULES:
        simt.schedule(order, seed)
        check_update(simt, optimizer, SHAPES, dtype, scope, shift=seed, noise_floor=FLOOR * (seed % 2))


OPTIONS: list[dict[str, Any]] = [
    {"given": True},
    {"amsgrad": True, "maximize": True},
    {"momentum": 0.0},
    {"first": True},
    {"nesterov": True, "maximize": True},
    {"lr_tensor": True, "found_inf": 0.0},
    {"found_inf": 1.0},
    {"noise_floor": FLOOR},
]


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(options))
def test_update_options(simt: Updates, options: dict[str, Any], optimizer: str) -> None:
    check_update(simt, optimizer, SHAPES, torch.float32, TENSOR, **options)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_update_with_moments_in_float32(simt: Updates, dtype: torch.dtype, optimizer: str) -> None:
    for shift in (0, 1):
        check_update(simt, optimizer, SHAPES, dtype, TENSOR, moments=torch.float32, shift=shift)


# around the two tables that a launch may take, 40 and 400; one of all sizes that fit a chunk, with empty ones between
@pytest.mark.parametrize("count", [1, 39, 40, 41, 200, 400])
@pytest.mark.parametrize("scope", [TENSOR, ROW])
def test_one_launch_for_many_tensors(simt: Updates, scope: int, count: int) -> None:
    simt.launches()
    check_update(simt, "adamw", many_shapes(count), torch.float32, scope)
    # the blocks of a tensor of several rows take tickets for its step: they are cleared before
    assert simt.launches() == (2 if scope == ROW and count > 1 else 1)


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("scope", [TENSOR, GLOBAL])
def test_a_launch_for_each_400_tensors(simt: Updates, scope: int, given: bool) -> None:
    shapes = [*many_shapes(401), (CHUNK + 3,)]
    simt.launches()
    check_update(simt, "adamw", shapes, torch.float32, scope, given=given)
    # tickets for the step of the last tensor; conflicts across tables are measured before, which takes two more
    assert simt.launches() == (3 if given else 5 if scope == GLOBAL else 2)


@pytest.mark.slow
@pytest.mark.parametrize("page", ["above"], indirect=True)
def test_old_drivers_take_40_tensors_in_a_launch(tmp_path: Path) -> None:
    old = "count <= kFewTensors || !takes_large_tables()"
    simt = Updates(changed_sources("tensor_lists.cuh", old, "true", tmp_path))
    for scope in (TENSOR, GLOBAL):
        simt.launches()
        check_update(simt, "adamw", MANY, torch.float32, scope)
        assert simt.launches() == (2 if scope == TENSOR else 5)


# both gradients are read once: by one block, or kept by every block of a grid that waits; the third grid is too small
# to keep them and reads them again
WAYS = [([(16, 512)], 8), ([(65536,)], 8), ([(3 * CHUNK,), (40,), (100,), (9,), (2 * CHUNK,)], 2)]


@pytest.mark.parametrize(("shapes", "resident_blocks"), WAYS, ids=["block", "grid", "small-grid"])
def test_one_launch_does_it_all(simt: Updates, shapes: list[tuple[int, ...]], resident_blocks: int) -> None:
    for order, seed in SCHEDULES:
        simt.schedule(order, seed, resident_blocks)
        simt.launches()
        check_update(simt, "adamw", shapes, torch.float32, TENSOR)
        assert simt.launches() == 1


def test_large_lists_are_measured_before(tmp_path: Path) -> None:
    threshold = "kOneLaunch = int64_t(1) << 22"  # more than the tests have time for
    simt = Updates(changed_sources("projection.cuh", threshold, "kOneLaunch = 2 * kChunk", tmp_path))
    shapes = [(3 * CHUNK + 5,), (40,)]
    for order, seed in SCHEDULES:
        simt.schedule(order, seed)
        simt.launches()
        check_update(simt, "adamw", shapes, torch.float32, TENSOR)
        assert simt.launches() == 3  # tickets are cleared, gradients measured, parameters updated
    for scope in (TENSOR, GLOBAL):
        for around in floors.arounds(torch.float32, scope, shapes):
            floors.check(around, floored_steps(simt, "sgd"))


def test_a_general_gradient_of_no_use_changes_nothing(simt: Updates) -> None:
    for poison in (0.0, math.nan, math.inf, 1e-25):
        update = Update("sgd", [(100,)], torch.float32, TENSOR)
        update.general = [torch.full((100,), poison)]
        update.run(simt)
        update.general, update.coefficients = [torch.zeros(100)], torch.tensor([[1.0, 0.0]])
        update.new_entries = torch.full((1, 3), math.nan)
        update.check()


def floored_steps(simt: Updates, optimizer: str) -> Callable[[floors.Around], list[Tensor]]:
    """What a step makes of gradients around a floor: the projected gradients, bit for bit."""

    def projected(around: floors.Around) -> list[Tensor]:
        params, m, v = ([torch.zeros_like(a) for a in around.task] for _ in range(3))
        common = (empty_entries(around.task, around.scope), None, None, 1.0)
        lists = (params, around.task, around.general)
        numbers = (1.0, around.floor, around.scope)
        if optimizer == "adamw":
            steps = [torch.tensor(0.0) for _ in params]
            simt.project_adamw_(*lists, m, v, [], steps, *common, 0.0, 0.9, 1e-8, 0.0, *numbers, False, False, None)
            return m
        simt.project_sgd_(*lists, [], *common, 0.0, 0.0, 0.0, *numbers, False, True, False, None)
        return params

    return projected


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("dtype", STORAGES)
def test_noise_floor(simt: Updates, dtype: torch.dtype, optimizer: str) -> None:
    projected = floored_steps(simt, optimizer)
    for scope in (TENSOR, ROW, GLOBAL):
        # one block alone; then with units of several chunks, for which the grid waits
        for shapes in ([(7,), (2, 40)], [(3,), (2, CHUNK + 5)]):
            for around in floors.arounds(dtype, scope, shapes):
                floors.check(around, projected)
    floors.check(floors.random_rows(dtype, 100), projected)
    for around in floors.extremes() if dtype == torch.float32 else ():
        floors.check(around, projected)


FAULTS = {
    "no barrier before a shared write": Fault(
        "reduce.cuh", "__syncthreads();  // of_warp may still be read by the previous reduction", ""
    ),
    "no barrier after a shared write": Fault(
        "reduce.cuh",
        "of_warp[threadIdx.x / kWarp] = value;\n  __syncthreads();",
        "of_warp[threadIdx.x / kWarp] = value;",
    ),
    "context overwritten": Fault(
        "projection.cuh", "__syncthreads();  // context may still be read for the previous chunk", ""
    ),
    "no grid sync": Fault("projection.cuh", "cooperative_groups::this_grid().sync();", "__syncthreads();"),
    "step advanced by each chunk": Fault(
        "projection.cuh",
        "Rule::kSteps && table.one_chunk_each && threadIdx.x == 0",
        "Rule::kSteps && threadIdx.x == 0",
        says="relative error|wrong steps",
    ),
    "one power for both": Fault("updates.cu", "threadIdx.x % 2 ? settings.beta2 : settings.beta1", "settings.beta1"),
    "one tensor too far": Fault(
        "tensor_lists.cuh",
        "index >= table.first_chunk[middle]",
        "index + 1 >= table.first_chunk[middle]",
        says="a kernel (read|wrote)|misaligned address",
    ),
    "step advanced too early": Fault("projection.cuh", "is_last_block(plan.step_ticket, gridDim.x)", "blockIdx.x == 0"),
}


def small_case(simt: Updates, seed: int) -> None:
    check_update(simt, "adamw", [(6 * CHUNK,), (40,), (9,), (50,), (7,)], torch.float32, TENSOR)


@planted(FAULTS)
def test_planted_faults_are_found(fault: str, tmp_path: Path) -> None:
    assert_found(FAULTS[fault], Updates, small_case, tmp_path)


def test_nothing_is_found_without_a_fault(simt: Updates) -> None:
    run_case(simt, small_case)
