"""The CUDA kernels, executed on the CPU by tests/simt/simt.h, against the reference in float64.

Cases run under several schedules of threads and blocks; simt.h says what that can find and what not. The planted faults
at the end show what the suite is worth.
"""

import math
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from prograd_fast.reference import losses as reference_losses
from prograd_fast.reference import projection as reference_projection
from prograd_fast.reference import updates as reference_updates
from prograd_fast.reference.losses import REDUCTIONS
from prograd_fast.reference.projection import SCOPES
from tests.simt.library import ORDERS, STORAGES, Library, SimtError, compile_cpp, compiler
from tests.tolerances import assert_close

pytestmark = pytest.mark.skipif(compiler() is None, reason="no C++ compiler: the CUDA kernels cannot run on the CPU")

SCHEDULES = [(order, seed) for seed, order in enumerate(ORDERS)]
TENSOR, ROW, GLOBAL = range(3)
CHUNK = 8192  # elements of one block: kChunk of csrc/cuda/chunks.cuh


@pytest.fixture(scope="module")
def simt() -> Library:
    return Library()


def accumulation(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


class Guarded:
    """Tensors in buffers of their own, with values around them that no kernel may change.

    Args:
        shift: elements by which they miss a 16-byte boundary.
    """

    def __init__(self, shift: int = 0) -> None:
        self._shift = shift
        self._buffers: list[tuple[Tensor, int, int]] = []

    def __call__(self, tensor: Tensor) -> Tensor:
        start = 16 + self._shift
        buffer = torch.full((tensor.numel() + 40,), 77, dtype=tensor.dtype)
        view = buffer[start : start + tensor.numel()].view(tensor.shape)
        self._buffers.append((buffer, start, tensor.numel()))
        return view.copy_(tensor)

    def list(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        return [self(tensor) for tensor in tensors]

    def check(self) -> None:
        for buffer, start, size in self._buffers:
            outside = torch.cat([buffer[:start], buffer[start + size :]])
            assert bool((outside == 77).all()), "write outside of a tensor"


# ---- the header itself


def test_simt_header_on_known_kernels() -> None:
    folder = Path(__file__).parent / "simt"
    program = compile_cpp([folder / "self_test.cpp"], [folder], "self_test")
    result = subprocess.run([program], capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout) == (0, "ok\n"), result.stdout


# ---- dual loss


def run_dual_loss(
    simt: Library, z: Tensor, t: Tensor, labels: Tensor, reduction: int = 1, shift: int = 0, **options: Any
) -> tuple[Tensor, Tensor, Tensor]:
    acc = accumulation(z.dtype)
    guarded = Guarded(shift)
    shape = (2, z.shape[0]) if reduction == 0 else (2,)
    results = (
        guarded(torch.full(shape, math.nan, dtype=acc)),
        guarded(torch.full((2, *z.shape), math.nan, dtype=z.dtype)),
        torch.tensor(-1),
    )
    weights = (options.get(name) for name in ("teacher_offset", "task_weight", "general_weight"))
    weights = tuple(None if weight is None else weight.to(acc) for weight in weights)
    simt.dual_loss_out(
        guarded(z),
        guarded(t),
        labels,
        *weights,
        options.get("temperature", 1.0),
        options.get("general") == "soft_ce",
        reduction,
        losses=results[0],
        cotangents=results[1],
        correct=results[2],
    )
    guarded.check()
    return results


def check_dual_loss(
    simt: Library, z: Tensor, t: Tensor, labels: Tensor, reduction: int = 1, shift: int = 0, **options: Any
) -> None:
    losses, cotangents, correct = run_dual_loss(simt, z, t, labels, reduction, shift, **options)
    wide = {name: value.double() if isinstance(value, Tensor) else value for name, value in options.items()}
    general = wide.pop("general", "kl")
    wide |= {"reduction": REDUCTIONS[reduction]}
    expected = torch.stack(reference_losses.dual_loss(z.double(), t.double(), labels, general=general, **wide))
    by_logit = reference_losses.dual_loss_cotangents(z.double(), t.double(), labels, **wide)
    assert_close(losses, expected, "formula", accumulation(z.dtype))
    assert_close(cotangents, by_logit, "formula", z.dtype)
    assert correct == reference_losses.count_correct(z, labels), "wrong count"


def logits(rows: int, classes: int, dtype: torch.dtype, scale: float = 3.0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rows * classes)
    z, t = (scale * torch.randn(2, rows, classes, generator=generator)).to(dtype)
    return z, t, torch.randint(classes, (rows,), generator=generator)


@pytest.mark.parametrize("dtype", STORAGES)
@pytest.mark.parametrize(
    ("rows", "classes"),
    [
        (1, 1),
        (3, 5),  # less than one pack, and rows that start off a 16-byte boundary
        (4, 32),
        (5, 257),  # several warps, an incomplete pack at either end
        (3, 1000),
        (2, 5003),  # several packs for a thread
    ],
)
def test_dual_loss(simt: Library, dtype: torch.dtype, rows: int, classes: int) -> None:
    z, t, labels = logits(rows, classes, dtype)
    for (order, seed), reduction in zip(SCHEDULES, range(3), strict=True):
        simt.schedule(order, seed)
        check_dual_loss(simt, z, t, labels, reduction, shift=seed, temperature=2.0)


@pytest.mark.parametrize("general", reference_losses.GENERAL_LOSSES)
@pytest.mark.parametrize("dtype", STORAGES)
def test_dual_loss_with_offset_and_weights(simt: Library, dtype: torch.dtype, general: str) -> None:
    z, t, labels = logits(6, 67, dtype)
    offset, task_weight, general_weight = torch.randn(67), torch.rand(6), torch.rand(6)
    for reduction in range(3):
        check_dual_loss(
            simt,
            z,
            t,
            labels,
            reduction,
            temperature=0.5,
            general=general,
            teacher_offset=offset,
            task_weight=task_weight,
            general_weight=general_weight,
        )


@pytest.mark.parametrize("classes", [9, 300])
def test_dual_loss_of_extreme_logits(simt: Library, classes: int) -> None:
    z, t, labels = logits(8, classes, torch.float32)
    z[0, ::2], t[0, 1::2] = 1e4, 1e4
    z[1, ::2], t[1, 1::2] = -1e4, -1e4
    z[2:5, 3] = t[2:5, 3] = t[4:, 5] = -math.inf  # a class excluded by both, or by the teacher alone
    t[5, 1:] = -math.inf  # a teacher that is sure
    t[6, ::2] = z[6, ::2] = -math.inf
    labels[:] = 1
    for order, seed in SCHEDULES:
        simt.schedule(order, seed)
        check_dual_loss(simt, z, t, labels)


def test_dual_loss_where_the_student_excludes_what_the_teacher_has(simt: Library) -> None:
    z, t, labels = logits(2, 300, torch.float32)
    z[0, 7] = -math.inf
    labels[:] = 1
    losses, cotangents, _ = run_dual_loss(simt, z, t, labels, reduction=0)
    assert losses[1, 0] == math.inf
    assert losses[0].isfinite().all()
    assert cotangents.isfinite().all()


def test_dual_loss_of_rows_too_long_for_shared_memory(simt: Library) -> None:
    z, t, labels = logits(2, 20001, torch.float64)
    check_dual_loss(simt, z, t, labels)


def test_dual_loss_counts_the_first_of_equal_logits(simt: Library) -> None:
    z, t, _ = logits(4, 300, torch.float32)
    z[:, [20, 290]] = 99.0
    labels = torch.tensor([20, 290, 20, 3])
    for order, seed in SCHEDULES:
        simt.schedule(order, seed)
        assert run_dual_loss(simt, z, t, labels)[2] == 2


def test_dual_loss_of_no_rows(simt: Library) -> None:
    z, t, labels = logits(0, 5, torch.float32)
    assert run_dual_loss(simt, z, t, labels, reduction=1)[0].isnan().all()  # as torch: the mean of nothing
    losses, _, correct = run_dual_loss(simt, z, t, labels, reduction=2)
    assert losses.tolist() == [0.0, 0.0]
    assert correct == 0


@pytest.mark.parametrize("label", [-1, 5])
def test_dual_loss_refuses_a_label_outside(simt: Library, label: int) -> None:
    z, t, labels = logits(3, 5, torch.float32)
    labels[1] = label
    with pytest.raises(SimtError, match="label"):
        run_dual_loss(simt, z, t, labels)


def test_dual_loss_is_the_same_under_every_schedule(simt: Library) -> None:
    z, t, labels = logits(20, 257, torch.float32)
    results = []
    for order, seed in SCHEDULES:
        simt.schedule(order, seed, resident_blocks=1 + 5 * seed)
        results.append(run_dual_loss(simt, z, t, labels))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


# ---- linear dual loss


@pytest.mark.parametrize("dtype", STORAGES)
@pytest.mark.parametrize(
    ("rows", "classes", "width"),
    [
        (1, 1, 1),
        (5, 37, 24),
        (66, 20, 33),  # two tiles of rows; rows of features off a 16-byte boundary
        (3, 1030, 8),  # two ranges of classes
        (2, 3, 520),  # two panels of columns
    ],
)
def test_linear_dual_loss(simt: Library, dtype: torch.dtype, rows: int, classes: int, width: int) -> None:
    order, seed = SCHEDULES[rows % 3]
    simt.schedule(order, seed)
    check_linear_dual_loss(simt, dtype, rows, classes, width)


def check_linear_dual_loss(simt: Library, dtype: torch.dtype, rows: int, classes: int, width: int) -> None:
    generator = torch.Generator().manual_seed(rows)
    x, w, v = (
        torch.nn.functional.normalize(torch.randn(n, width, generator=generator), dim=1).to(dtype)
        for n in (rows, classes, classes)
    )
    labels = torch.randint(classes, (rows,), generator=generator)
    acc = accumulation(dtype)
    offset, task_weight, general_weight = (torch.rand(n, generator=generator).to(acc) for n in (classes, rows, rows))
    scale, temperature = 20.0, 2.0
    for reduction, general in enumerate(("kl", "soft_ce", "kl")):
        guarded = Guarded()
        losses = guarded(torch.full((2, rows) if reduction == 0 else (2,), math.nan, dtype=acc))
        cotangents, correct = guarded(torch.full((2, classes, width), math.nan, dtype=dtype)), torch.tensor(-1)
        weights = (offset, task_weight, general_weight)
        simt.linear_dual_loss_out(
            *(guarded(matrix) for matrix in (x, w, v)),
            labels,
            *weights,
            scale,
            temperature,
            general == "soft_ce",
            reduction,
            losses=losses,
            cotangents=cotangents,
            correct=correct,
        )
        guarded.check()
        z, t = (reference_losses.linear_logits(x.double(), classes, scale) for classes in (w.double(), v.double()))
        options: dict[str, Any] = {
            "teacher_offset": offset.double(),
            "task_weight": task_weight.double(),
            "general_weight": general_weight.double(),
            "reduction": REDUCTIONS[reduction],
        }
        expected = reference_losses.dual_loss(z, t, labels, temperature, general, **options)  # type: ignore[arg-type]
        by_logit = reference_losses.dual_loss_cotangents(z, t, labels, temperature, **options)
        assert_close(losses, torch.stack(expected), "formula", acc)
        assert_close(cotangents, scale * (by_logit.mT @ x.double()), "formula", dtype)
        assert correct == reference_losses.count_correct(z, labels), "wrong count"


def test_linear_dual_loss_of_no_rows(simt: Library) -> None:
    x, w, labels = torch.empty(0, 4), torch.randn(5, 4), torch.empty(0, dtype=torch.int64)
    losses, cotangents, correct = torch.empty(2), torch.full((2, 5, 4), math.nan), torch.tensor(-1)
    options = (labels, None, None, None, 1.0, 1.0, False, 2)
    simt.linear_dual_loss_out(x, w, w, *options, losses=losses, cotangents=cotangents, correct=correct)
    assert losses.tolist() == [0.0, 0.0]
    assert not cotangents.any()
    assert correct == 0


# ---- gradients

SHAPES: list[tuple[int, ...]] = [(1,), (), (0,), (3, 5), (16, 33), (7, 1201), (2, CHUNK + 1)]
MANY: list[tuple[int, ...]] = [(n,) for n in range(1, 42)] + [(CHUNK + 3,)]  # more than one table holds


def gradients(shapes: Sequence[tuple[int, ...]], dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
    """Pairs of gradients, every second of which conflicts."""
    generator = torch.Generator().manual_seed(len(shapes))
    task = [torch.randn(shape, generator=generator) for shape in shapes]
    general = [
        torch.randn(shape, generator=generator) + (0.5 if i % 2 else -0.5) * a
        for i, (shape, a) in enumerate(zip(shapes, task, strict=True))
    ]
    return [a.to(dtype) for a in task], [b.to(dtype) for b in general]


def doubled(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [tensor.double() for tensor in tensors]


def empty_entries(task: list[Tensor], scope: int) -> Tensor:
    units = 1 if scope == GLOBAL else sum(reference_projection.n_units(a, SCOPES[scope]) for a in task)
    return torch.full((units, 3), math.nan, dtype=accumulation(task[0].dtype))


def check_gram(simt: Library, shapes: Sequence[tuple[int, ...]], dtype: torch.dtype, scope: int, shift: int) -> Tensor:
    task, general = gradients(shapes, dtype)
    guarded = Guarded(shift)
    entries = guarded(empty_entries(task, scope))
    simt.gram_out(guarded.list(task), guarded.list(general), scope, entries=entries)
    guarded.check()
    assert_close(
        entries, reference_projection.gram(doubled(task), doubled(general), SCOPES[scope]), "formula", entries.dtype
    )
    return entries


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
        parts = reference_projection.split_units(coefficients.double(), task, SCOPES[scope])
        for got, a, b, c in zip(result, task, general, parts, strict=True):
            assert_close(got, reference_projection.combine(a.double(), b.double(), c), "formula", dtype)


def test_project_leaves_what_has_no_conflict_bit_for_bit(simt: Library) -> None:
    task, general = [torch.tensor([-0.0, 1.0, math.nan, math.inf])], [torch.full((4,), math.nan)]
    before = task[0].clone()
    simt.project_(task, general, torch.tensor([[1.0, 0.0]]), TENSOR)
    assert torch.equal(task[0].view(torch.int32), before.view(torch.int32))


# ---- updates

SETTINGS: dict[str, Any] = {"lr": 0.1, "beta1": 0.8, "beta2": 0.95, "eps": 1e-3, "weight_decay": 0.3}


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
        grad_scale: float | None = None,
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

    def run(self, simt: Library) -> None:
        """By the kernel, in place."""
        guarded = Guarded(self.shift)
        self.results = [guarded.list(tensors) for tensors in (self.params, *self.states)]
        self.new_entries, self.new_steps = guarded(self.entries), guarded.list(self.steps)
        gradients = guarded.list(self.task), guarded.list(self.general)
        scale = None if self.grad_scale is None else torch.tensor(self.grad_scale)
        found_inf = None if self.found_inf is None else torch.tensor(self.found_inf)
        lr_tensor = torch.tensor(SETTINGS["lr"]) if self.lr_tensor else None
        lr = -99.0 if self.lr_tensor else SETTINGS["lr"]
        common = (self.new_entries, self.coefficients, lr_tensor, lr)
        if self.optimizer == "adamw":
            states = [*self.results[1:], *([] if self.amsgrad else [[]])]
            numbers = (SETTINGS["beta1"], SETTINGS["beta2"], SETTINGS["eps"], SETTINGS["weight_decay"], 0.7)
            flags = (self.scope, self.amsgrad, self.maximize, scale, found_inf)
            simt.project_adamw_(self.results[0], *gradients, *states, self.new_steps, *common, *numbers, *flags)
        else:
            states = self.results[1:] or [[]]
            numbers = (self.momentum, 0.25, SETTINGS["weight_decay"], 0.7)
            flags = (self.scope, self.nesterov, self.maximize, self.first, scale, found_inf)
            simt.project_sgd_(self.results[0], *gradients, *states, *common, *numbers, *flags)
        guarded.check()

    def check(self) -> None:
        """Against the reference."""
        scope = SCOPES[self.scope]
        task, general = [a.double() / (self.grad_scale or 1.0) for a in self.task], doubled(self.general)
        expected_entries = reference_projection.gram(task, general, scope)
        if self.coefficients is None:
            assert_close(self.new_entries, expected_entries, "formula", self.entries.dtype)
            coefficients = reference_projection.prograd_coefficients(expected_entries, 0.7)
        else:
            assert self.new_entries.isnan().all(), "entries are left alone where coefficients are given"
            coefficients = self.coefficients.double()
        parts = reference_projection.split_units(coefficients, self.task, scope)
        for i, (a, b, c) in enumerate(zip(task, general, parts, strict=True)):
            g = reference_projection.combine(a, b, c)
            old = [tensors[i].double() for tensors in (self.params, *self.states)]
            new = self._expected(i, -g if self.maximize else g, old)
            if self.found_inf:
                new = old
            for result, value in zip(self.results, new, strict=True):
                assert_close(result[i], value, "formula", result[i].dtype)
        advance = 0 if self.found_inf else 1
        assert [float(s) for s in self.new_steps] == [float(s) + advance for s in self.steps]

    def _expected(self, i: int, g: Tensor, old: list[Tensor]) -> list[Tensor]:
        if self.optimizer == "adamw":
            p, m, v, largest = [*old, None][:4]
            betas = (SETTINGS["beta1"], SETTINGS["beta2"])
            numbers = {name: SETTINGS[name] for name in ("lr", "eps", "weight_decay")}
            step = self.steps[i].double() + 1
            new = reference_updates.adamw(p, g, m, v, largest, step, betas=betas, **numbers)
        else:
            new = reference_updates.sgd(
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


def check_update(simt: Library, *args: Any, **options: Any) -> None:
    update = Update(*args, **options)
    update.run(simt)
    update.check()


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
    simt = modified("update.cuh", threshold, "kOneLaunch = 2 * kChunk", "gradients", tmp_path)
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


# ---- planted faults: what the suite is worth

WRONG = "relative error|wrong count"
# name: file, what stands there, what it becomes, the case that must fail, what it must say
FAULTS: dict[str, tuple[str, str, str, str, str]] = {
    "no barrier before a shared write": (
        "reduce.cuh",
        "__syncthreads();  // of_warp may still be read by the previous reduction",
        "",
        "updates",
        WRONG,
    ),
    "no barrier after a shared write": (
        "reduce.cuh",
        "of_warp[threadIdx.x / kWarp] = value;\n  __syncthreads();",
        "of_warp[threadIdx.x / kWarp] = value;",
        "updates",
        WRONG,
    ),
    "wrong last block": ("reduce.cuh", "== blocks - 1", "== blocks - 2", "gram", WRONG),
    "wrong start of a shuffle tree": ("reduce.cuh", "offset = kWarp / 2", "offset = kWarp / 4", "gram", WRONG),
    "divergent collective": (
        "reduce.cuh",
        "value = merge(value, shuffle(value, offset));",
        "if (int(threadIdx.x) % kWarp < 2 * offset) value = merge(value, shuffle(value, offset));",
        "gram",
        "deadlock",
    ),
    "no barrier before the last block is chosen": (
        "reduce.cuh",
        "__syncthreads();  // every thread has written what the last block will read",
        "",
        "linear",
        WRONG,
    ),
    "context overwritten": (
        "update.cuh",
        "__syncthreads();  // context may still be read for the previous chunk",
        "",
        "updates",
        WRONG,
    ),
    "no grid sync": (
        "update.cuh",
        "cooperative_groups::this_grid().sync();",
        "__syncthreads();",
        "updates",
        WRONG,
    ),
    "step advanced too early": (
        "update.cuh",
        "is_last_block(plan.ticket, gridDim.x)",
        "blockIdx.x == 0",
        "updates",
        WRONG,
    ),
    "tile overwritten": (
        "linear_dual_loss.cuh",
        "__syncthreads();  // the tiles may still be read",
        "",
        "linear",
        WRONG,
    ),
}


def modified(file: str, old: str, new: str, kernels: str, folder: Path) -> Library:
    """Kernels from a changed copy of the sources, float32 only: a quarter of the time to compile."""
    sources, csrc = Path(__file__).parents[1] / "csrc", folder / "csrc"
    (csrc / "cuda").mkdir(parents=True)
    for source in [sources / "math.h", *(sources / "cuda").glob("*.cu*"), sources / "cuda" / "kernels.h"]:
        text = source.read_text()
        if source.name == file:
            assert text.count(old) == 1, f"expected {old!r} once in {file}"
            text = text.replace(old, new)
        if source.name == "storage.cuh":
            text = re.sub(r"return function\(Type<(?!float>)\w+>\{\}\)", "return", text)
        (csrc / source.relative_to(sources)).write_text(text)
    return Library(csrc, kernels)


def run_case(simt: Library, case: str) -> None:
    """Small enough to repeat, and with a race wherever a fault could make one."""
    for seed in range(2):
        for order in ORDERS:
            simt.schedule(order, seed, resident_blocks=3)
            match case:
                case "gram":
                    check_gram(simt, [(3 * CHUNK,)], torch.float32, TENSOR, shift=0)
                case "updates":
                    check_update(simt, "adamw", [(6 * CHUNK,), (40,), (9,), (50,), (7,)], torch.float32, TENSOR)
                case "linear":
                    check_linear_dual_loss(simt, torch.float32, rows=300, classes=17, width=40)


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_found(fault: str, tmp_path: Path) -> None:
    file, old, new, case, _ = FAULTS[fault]
    simt = modified(file, old, new, "linear_dual_loss" if case == "linear" else "gradients", tmp_path)
    with pytest.raises((AssertionError, SimtError), match=FAULTS[fault][-1]):
        run_case(simt, case)


@pytest.mark.parametrize("case", ["gram", "updates", "linear"])
def test_nothing_is_found_without_a_fault(simt: Library, case: str) -> None:
    run_case(simt, case)
