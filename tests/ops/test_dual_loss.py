"""dual_loss_out on every backend against the float64 reference."""

import itertools

import pytest
import torch
from torch import Tensor

from prograd_fast import functional
from prograd_fast.ops.common import Reduction
from prograd_fast.ops.dual_loss import General
from tests.ops.support import BACKENDS, DTYPES, accumulation, normal, running_on, threads
from tests.slow import slow_but_for
from tests.tolerances import assert_close

REDUCTIONS = ("none", "mean", "sum")


def inputs(rows: int, classes: int, dtype: torch.dtype, scale: float = 3.0) -> tuple[Tensor, Tensor, Tensor]:
    z, t = (scale * normal(rows, classes, seed=seed) for seed in (1, 2))
    labels = torch.randint(0, classes, (rows,), generator=torch.Generator().manual_seed(3))
    return z.to(dtype), t.to(dtype), labels


def call(z: Tensor, t: Tensor, labels: Tensor, *options: object) -> tuple[Tensor, ...]:
    return torch.ops.prograd_fast.dual_loss(z, t, labels, *options)


def expected(z: Tensor, t: Tensor, labels: Tensor, *options: object) -> tuple[Tensor, ...]:
    doubles = [o.double() if isinstance(o, Tensor) else o for o in options]
    with running_on("reference"):
        return call(z.double(), t.double(), labels, *doubles)


# 1: a single class; 7: less than a vector; 1000: vectors and a rest; 3001: several blocks of cotangents and a rest
@pytest.mark.parametrize("classes", [1, 7, 1000, 3001])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_parity(backend: str, dtype: torch.dtype, classes: int) -> None:
    z, t, labels = inputs(5, classes, dtype)
    acc = accumulation(dtype)
    offset, task_weight, general_weight = normal(classes, dtype=acc), normal(5, dtype=acc).abs(), normal(5, dtype=acc)
    for temperature, soft_ce, reduction in itertools.product((1.0, 2.5), (False, True), range(3)):
        for extras in ((None, None, None), (offset, task_weight, general_weight)):
            options = (*extras, temperature, soft_ce, reduction)
            with running_on(backend):
                actual = call(z, t, labels, *options)
            wanted = expected(z, t, labels, *options)
            assert actual[0].dtype == acc
            assert actual[2].dtype == acc
            for i, got in enumerate(actual[:3]):
                # the losses are sums and differences of logits: measured against those
                scale = z if i < 2 else None
                assert_close(got, wanted[i], "formula", acc, scale)
            assert actual[3] == wanted[3]


def check_rows(backend: str, z: Tensor, t: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Each row by itself, so that a large one does not hide what is wrong with another; returns the cotangents."""
    options = (None, None, None, temperature, False, 0)
    with running_on(backend):
        *actual, correct = call(z, t, labels, *options)
    *wanted, wanted_correct = expected(z, t, labels, *options)
    assert correct == wanted_correct
    for got, want in zip((*actual[:2], *actual[2]), (*wanted[:2], *wanted[2]), strict=True):
        assert got.isfinite().all()
        for row, wanted_row in zip(got, want, strict=True):
            assert_close(row, wanted_row, "formula", torch.float32)
    return actual[2]


@pytest.mark.parametrize("backend", BACKENDS)
def test_extreme_logits(backend: str) -> None:
    # ±1e4 overflows exp; -inf excludes a class for the teacher, for both, and all of a row's first vector
    z, t, labels = inputs(6, 40, torch.float32)
    z[0, 3], z[0, 4], t[0, 3], t[0, 5] = 1e4, -1e4, -1e4, 1e4
    t[:, 7] = -torch.inf
    z[:, 7] = -torch.inf
    t[1, :33] = -torch.inf
    labels[labels == 7] = 8
    for temperature in (1.0, 3.0):
        cotangents = check_rows(backend, z, t, labels, temperature)
        assert (cotangents[1, :, 7] == 0).all()


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("backend", BACKENDS)
def test_maxima_that_rise_along_the_row(backend: str, temperature: float) -> None:
    # rows longer than a kernel keeps at once: sums so far become relative to a larger maximum, to one that makes them
    # vanish (±1e4), and to the first finite one after nothing but -inf, for either model or both
    z, t, labels = inputs(6, 3001, torch.float32)
    rising = torch.linspace(-40, 40, 3001)
    z[0] += rising
    t[1] -= rising
    z[2, 2500], t[2, 1500] = 1e4, 1e4
    t[3, :2100] = -torch.inf
    z[4, :1100] = t[4, :1100] = -torch.inf
    z[5] -= 50
    labels[4] = 3000
    check_rows(backend, z, t, labels, temperature)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_order_of_the_classes_does_not_make_a_divergence_infinite(backend: str) -> None:
    # terms that are beyond float32 relative to the maxima of the first classes, and no longer relative to those of all
    z, t, labels = inputs(2, 2048, torch.float32)
    z.zero_()
    t.zero_()
    z[:, :1024] = torch.finfo(torch.float32).min
    t[0, :1024], t[1, :1024] = -80, -30
    labels.fill_(2000)
    options = (None, None, None, 1.0, False, 0)
    wanted = expected(z, t, labels, *options)[1]
    with running_on(backend):
        for order in (slice(None), torch.arange(2047, -1, -1)):
            general = call(z[:, order], t[:, order], 2047 - labels, *options)[1]
            assert_close(general / wanted, torch.ones(2), "formula", torch.float32)


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_the_student_excludes_and_the_teacher_does_not_is_infinitely_far(backend: str) -> None:
    z, t, labels = inputs(2, 50, torch.float32)
    z[0, 11], labels[0] = -torch.inf, 0
    with running_on(backend):
        _, general, cotangents, _ = call(z, t, labels, None, None, None, 1.0, False, 0)
    assert general[0] == torch.inf
    assert general[1].isfinite()
    assert cotangents.isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_not_a_number_stays_one(backend: str) -> None:
    z, t, labels = inputs(3, 50, torch.float32)
    z[1, 49] = torch.nan
    with running_on(backend):
        task, general, cotangents, correct = call(z, t, labels, None, None, None, 1.0, False, 0)
    assert task.isnan().tolist() == general.isnan().tolist() == [False, True, False]
    assert cotangents[:, 1].isnan().all()
    assert correct == expected(z, t, labels, None, None, None, 1.0, False, 0)[3]


@pytest.mark.parametrize("backend", BACKENDS)
def test_ties_count_for_the_lowest_class(backend: str) -> None:
    z = torch.zeros(3, 20)
    z[:, 4] = z[:, 17] = 1
    with running_on(backend):
        assert call(z, z, torch.tensor([4, 17, 3]), None, None, None, 1.0, False, 1)[3] == 1


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_rows(backend: str) -> None:
    z, t, labels = inputs(0, 9, torch.float32)
    with running_on(backend):
        for reduction, value in ((1, torch.nan), (2, 0.0)):
            task, general, cotangents, correct = call(z, t, labels, None, None, None, 1.0, False, reduction)
            torch.testing.assert_close(torch.stack([task, general]), torch.full((2,), value), equal_nan=True)
            assert cotangents.shape == (2, 0, 9)
            assert correct == 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_strides_and_mixed_dtypes(backend: str) -> None:
    # a transposed matrix, every second row, and a bfloat16 student with a float32 teacher as under autocast
    z, t, labels = inputs(8, 30, torch.float32)
    cases = [
        (z.T.contiguous().T, t),
        (z.repeat_interleave(2, 0)[::2], t.repeat_interleave(2, 1)[:, ::2]),
        (z.bfloat16(), t),
        (z, t.double()),
    ]
    options = (None, None, None, 2.0, False, 1)
    for student, teacher in cases:
        with running_on(backend):
            actual = call(student, teacher, labels, *options)
        wanted = expected(student, teacher, labels, *options)
        assert_close(actual[0], wanted[0], "formula", torch.float32)
        assert_close(actual[1], wanted[1], "formula", torch.float32)
        assert_close(actual[2], wanted[2], "formula", torch.float32)


@pytest.mark.parametrize("backend", BACKENDS)
def test_cotangents_into_any_buffer(backend: str) -> None:
    # results that are no contiguous memory of their own: a column-major pair of matrices
    z, t, labels = inputs(4, 30, torch.float32)
    losses, correct = torch.empty(2), torch.empty((), dtype=torch.int64)
    cotangents = torch.empty(30, 4, 2).permute(2, 1, 0)
    options = (None, None, None, 1.0, False, 1)
    with running_on(backend):
        torch.ops.prograd_fast.dual_loss_out(
            z, t, labels, *options, losses=losses, cotangents=cotangents, correct=correct
        )
    assert_close(cotangents, expected(z, t, labels, *options)[2], "formula", torch.float32)
    assert all(result._version > 0 for result in (losses, cotangents, correct))  # autograd knows of the writes


def test_any_number_of_threads_gives_the_same_bits() -> None:
    # enough rows for two threads; large enough for streaming stores, which start in the middle of a cache line
    z, t, labels = inputs(150, 15001, torch.float32)
    results = []
    for count in (1, 2, 1, 3):
        with threads(count):
            results.append(call(z, t, labels, None, None, None, 2.0, False, 1))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
    wanted = expected(z[:3], t[:3], labels[:3], None, None, None, 2.0, False, 2)[2] / 150
    assert_close(results[0][2][:, :3], wanted, "formula", torch.float32)


@pytest.mark.parametrize("dtype", slow_but_for([torch.float32, torch.bfloat16], DTYPES), ids=str)
def test_results_beyond_the_caches(dtype: torch.dtype) -> None:
    # 21 MB of bfloat16, so that all dtypes go past the caches; the odd length starts rows anywhere in a cache line
    z, t, labels = inputs(5, 1_050_001, dtype)
    labels[1], labels[2] = 0, 1_050_000
    options = (None, None, None, 1.0, True, 2)
    actual = call(z, t, labels, *options)
    wanted = expected(z, t, labels, *options)
    for i, got in enumerate(actual[:3]):
        assert_close(got, wanted[i], "formula", accumulation(dtype), z if i < 2 else None)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("general", ["kl", "soft_ce"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_gradcheck(backend: str, general: General, reduction: Reduction) -> None:
    z, t, labels = inputs(3, 6, torch.float64)
    weights = {"task_weight": normal(3, seed=5), "general_weight": normal(3, seed=6), "teacher_offset": normal(6)}

    def losses(student: Tensor) -> tuple[Tensor, Tensor]:
        return functional.dual_loss(student, t, labels, 2.0, general, reduction=reduction, **weights)

    with running_on(backend):
        assert torch.autograd.gradcheck(losses, z.requires_grad_())


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradient_of_one_loss_does_not_see_the_other(backend: str) -> None:
    # the general loss is infinite here, and so may be its gradient in another model: 0 · inf must not reach the task
    z, t, labels = inputs(2, 10, torch.float32)
    t[0, 0] = torch.inf
    z.requires_grad_()
    with running_on(backend):
        task, general = functional.dual_loss(z, t, labels)
        (gradient,) = torch.autograd.grad(task, z)
    assert general.isnan()
    assert gradient.isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_vmap(backend: str) -> None:
    z, t, labels = inputs(4, 10, torch.float32)
    batch = torch.stack([z, 2 * z, -z], dim=1)

    def losses(student: Tensor) -> tuple[Tensor, Tensor]:
        return functional.dual_loss(student, t, labels)

    with running_on(backend):
        task, general = torch.vmap(losses, in_dims=1)(batch)
        for i in range(3):
            assert (task[i], general[i]) == losses(batch[:, i])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"labels": torch.tensor([0, 9, 1])}, ValueError, "labels: expected class indices 0 ... 4, got 0 ... 9"),
        ({"labels": torch.tensor([0, -1, 1])}, ValueError, "labels: expected class indices"),
        ({"labels": torch.zeros(3)}, TypeError, "labels: expected integer"),
        ({"labels": torch.zeros(4, dtype=torch.int64)}, ValueError, "labels: expected shape \\(3,\\)"),
        ({"teacher_logits": torch.zeros(3, 6)}, ValueError, "teacher_logits: expected the student's shape"),
        ({"teacher_logits": torch.zeros(3, 5, requires_grad=True)}, ValueError, "teacher_logits: .* fixed"),
        ({"student_logits": torch.zeros(3, 5).long()}, TypeError, "student_logits: expected a floating-point"),
        ({"student_logits": torch.zeros(5)}, ValueError, "student_logits: expected shape \\(batch, classes\\)"),
        ({"temperature": 0.0}, ValueError, "temperature: expected a number above 0"),
        ({"general": "js"}, ValueError, "general: expected one of kl, soft_ce"),
        ({"reduction": "max"}, ValueError, "reduction: expected one of none, mean, sum"),
        ({"teacher_offset": torch.zeros(3)}, ValueError, "teacher_offset: expected shape \\(5,\\)"),
        ({"task_weight": torch.zeros(5)}, ValueError, "task_weight: expected shape \\(3,\\)"),
        ({"general_weight": torch.zeros(3, requires_grad=True)}, ValueError, "general_weight: .* fixed"),
        ({"teacher_logits": torch.zeros(3, 5, device="meta")}, ValueError, "devices: expected one for all"),
    ],
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_bad_arguments(backend: str, change: dict[str, object], error: type[Exception], message: str) -> None:
    arguments = {"student_logits": normal(3, 5), "teacher_logits": normal(3, 5), "labels": torch.tensor([0, 1, 4])}
    with running_on(backend), pytest.raises(error, match=message):
        functional.dual_loss(**(arguments | change))
