"""linear_dual_loss on every backend against the float64 reference, and against dual_loss of stored logits."""

import itertools
import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from prograd_fast import functional
from tests.ops.support import BACKENDS, DTYPES, accumulation, assert_same_bits, normal, running_on, threads
from tests.paths import REPOSITORY
from tests.tolerances import assert_close

SCALE = 7.0


def inputs(rows: int, classes: int, width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x, student, teacher = (
        torch.nn.functional.normalize(normal(n, width, seed=seed), dim=1).to(dtype)
        for seed, n in enumerate((rows, classes, classes))
    )
    return x, student, teacher, torch.randint(0, classes, (rows,), generator=torch.Generator().manual_seed(3))


# rows, classes, width: one of each; less than a tile; several blocks of rows and of classes and a rest of each; sums of
# one term more than a block of the product has, and of several blocks
@pytest.mark.parametrize(
    ("rows", "classes", "width"), [(1, 1, 1), (3, 10, 16), (37, 700, 24), (5, 13, 513), (34, 97, 1031)]
)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_parity(backend: str, dtype: torch.dtype, rows: int, classes: int, width: int) -> None:
    x, student, teacher, labels = inputs(rows, classes, width, dtype)
    acc = accumulation(dtype)
    extras = (normal(classes, dtype=acc), normal(rows, dtype=acc).abs(), normal(rows, dtype=acc))
    for temperature, soft_ce, reduction in itertools.product((1.0, 2.5), (False, True), range(3)):
        for options in ((None, None, None), extras):
            rest = (SCALE, temperature, soft_ce, reduction)
            with running_on(backend):
                actual = torch.ops.prograd_fast.linear_dual_loss(x, student, teacher, labels, *options, *rest)
            doubles = [None if o is None else o.double() for o in options]
            with running_on("reference"):
                wanted = torch.ops.prograd_fast.linear_dual_loss(
                    x.double(), student.double(), teacher.double(), labels, *doubles, *rest
                )
            for got, want in zip(actual[:2], wanted[:2], strict=True):
                assert_close(got, want, "formula", acc, want.abs().clamp(min=SCALE))  # differences of logits
            # a single class has cotangents of 0 but for rounding: measured against the features that make them
            assert_close(actual[2], wanted[2], "formula", dtype, SCALE * x if classes == 1 else None)
            assert actual[3] == wanted[3]


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_are_those_of_stored_logits(backend: str) -> None:
    x, student, teacher, labels = inputs(9, 30, 8, torch.float64)
    student.requires_grad_()
    with running_on(backend):
        blocked = functional.linear_dual_loss(x, student, teacher, labels, SCALE, 2.0)
        stored = functional.dual_loss(SCALE * x @ student.T, SCALE * x @ teacher.T, labels, 2.0)
        for ours, theirs in zip(blocked, stored, strict=True):
            (a,) = torch.autograd.grad(3 * ours, student, retain_graph=True)
            (b,) = torch.autograd.grad(3 * theirs, student, retain_graph=True)
            assert_close(a, b, "formula", torch.float64)
    assert torch.autograd.gradcheck(
        lambda s: functional.linear_dual_loss(x, s, teacher, labels, SCALE, 2.0, "soft_ce", reduction="sum"), student
    )


def test_losses_of_single_rows_have_no_gradient() -> None:
    x, student, teacher, labels = inputs(3, 10, 8, torch.float32)
    task, _ = functional.linear_dual_loss(x, student.requires_grad_(), teacher, labels, SCALE, reduction="none")
    with pytest.raises(RuntimeError, match="expected reduction 'mean' or 'sum'"):
        task.sum().backward()


@pytest.mark.parametrize("backend", BACKENDS)
def test_vmap(backend: str) -> None:
    x, student, teacher, labels = inputs(3, 10, 8, torch.float32)
    with running_on(backend):

        def losses(s: Tensor) -> tuple[Tensor, Tensor]:
            return functional.linear_dual_loss(x, s, teacher, labels, SCALE)

        task, general = torch.vmap(losses)(torch.stack([student, -student]))
        assert (task[1], general[1]) == losses(-student)


# one class, whom nobody shares; a few, that threads share unevenly; many. One row; several blocks of rows
@pytest.mark.parametrize("classes", [1, 200, 1500])
@pytest.mark.parametrize("rows", [1, 300])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_any_number_of_threads_gives_the_same_bits(dtype: torch.dtype, rows: int, classes: int) -> None:
    arguments = inputs(rows, classes, 96, dtype)
    operator = torch.ops.prograd_fast.linear_dual_loss
    assert_same_bits(lambda: operator(*arguments, None, None, None, SCALE, 1.0, False, 1))


def all_bits() -> bytes:
    results: list[Tensor] = []
    for classes, count in itertools.product((200, 1500), (1, 2)):
        x, student, teacher, labels = inputs(300, classes, 96, torch.float32)
        with threads(count):
            results += torch.ops.prograd_fast.linear_cross_entropy(x, student, labels, SCALE)
            results += torch.ops.prograd_fast.linear_dual_loss(
                x, student, teacher, labels, None, None, None, SCALE, 1.0, False, 1
            )
    return b"".join(result.numpy().tobytes() for result in results)


def test_the_bits_do_not_depend_on_the_matrix_library() -> None:
    """In a process whose MKL takes another path, on which its products depend on the number of threads."""
    script = f"import sys; from {__name__} import all_bits; sys.stdout.buffer.write(all_bits())"
    environment = os.environ | {"MKL_CBWR": "COMPATIBLE"}
    root = REPOSITORY
    run = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, env=environment, timeout=300)
    assert run.returncode == 0, run.stderr.decode()
    assert run.stdout == all_bits()


# infinite; not a number; subnormal
@pytest.mark.parametrize("special", [float("inf"), float("nan"), 1e-42])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_special_feature_stays_in_its_row(backend: str, special: float) -> None:
    """The losses of the other rows are what they are without it, whatever they share with it in the product."""
    x, student, teacher, labels = inputs(40, 130, 50, torch.float32)
    changed = x.clone()
    changed[17, 3] = special
    others = torch.arange(40) != 17
    with running_on(backend):
        before = functional.linear_dual_loss(x, student, teacher, labels, SCALE, reduction="none")
        after = functional.linear_dual_loss(changed, student, teacher, labels, SCALE, reduction="none")
    for got, want in zip(after, before, strict=True):
        assert_close(got[others], want[others], "formula", torch.float32)
        assert bool(got[17].isfinite()) == (special < 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": torch.zeros(3, 9)}, "student_classes: expected the width of the features, 9, got 4"),
        ({"teacher_classes": torch.zeros(6, 4)}, "teacher_classes: expected the student's shape \\(5, 4\\)"),
        ({"features": torch.zeros(3, 4, requires_grad=True)}, "features: expected a tensor that is fixed"),
        ({"labels": torch.tensor([0, 5, 1])}, "labels: expected class indices 0 ... 4"),
        ({"student_classes": torch.zeros(5)}, "student_classes: expected shape \\(classes, width\\)"),
    ],
)
def test_bad_arguments(change: dict[str, Tensor], message: str) -> None:
    arguments = {
        "features": torch.zeros(3, 4),
        "student_classes": torch.zeros(5, 4),
        "teacher_classes": torch.zeros(5, 4),
        "labels": torch.tensor([0, 1, 4]),
    }
    with pytest.raises(ValueError, match=message):
        functional.linear_dual_loss(**(arguments | change), scale=SCALE)
