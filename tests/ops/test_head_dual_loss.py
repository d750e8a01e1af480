"""head_dual_loss, whose features are trained over a frozen head, on every backend against stored logits in float64."""

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import prograd_fast as pf
from prograd_fast import functional, reference
from prograd_fast.ops import head_dual_loss as family
from tests.ops.support import BACKENDS, DTYPES, accumulation, normal, running_on
from tests.tolerances import assert_close

F64 = torch.float64
# rows, classes, width: one of each, and a vocabulary that is a multiple of nothing
SIZES = [(1, 1, 1), (1, 101, 7), (13, 37, 6), (37, 1009, 24)]


def inputs(rows: int, classes: int, width: int, dtype: torch.dtype = F64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    student, teacher, head = (normal(n, width, seed=seed).to(dtype) for seed, n in enumerate((rows, rows, classes)))
    return student, teacher, head, torch.randint(0, classes, (rows,), generator=torch.Generator().manual_seed(3))


def by_torch(
    student: Tensor, teacher: Tensor, head: Tensor, labels: Tensor, bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """PyTorch's own losses of stored logits; the KL divergence over the rows that count."""
    z, t = F.linear(student, head, bias), F.linear(teacher, head, bias)
    kept = labels != -100
    log_p, log_q = z.log_softmax(1)[kept], t.log_softmax(1)[kept]
    return F.cross_entropy(z, labels), F.kl_div(log_p, log_q, log_target=True, reduction="batchmean")


def gradients(losses: tuple[Tensor, Tensor], leaf: Tensor) -> list[Tensor]:
    return [torch.autograd.grad(loss.sum(), leaf, retain_graph=True)[0] for loss in losses]


@pytest.fixture(params=[1, 5, 16, 1000], ids=lambda rows: f"{rows} rows a chunk")
def rows_a_chunk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    return int(request.param)


def limit(monkeypatch: pytest.MonkeyPatch, rows: int, classes: int, dtype: torch.dtype) -> None:
    """So many rows a chunk at most."""
    monkeypatch.setattr(family, "CHUNK_BYTES", rows * classes * accumulation(dtype).itemsize)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_parity_with_the_formula(
    backend: str, dtype: torch.dtype, sizes: tuple[int, int, int], rows_a_chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Losses and both gradients, whatever a chunk holds, with and without rows that do not count."""
    rows, classes, _ = sizes
    limit(monkeypatch, rows_a_chunk, classes, dtype)
    student, teacher, head, labels = inputs(*sizes, dtype)
    student.requires_grad_()
    wide = [x.detach().double() for x in (student, teacher, head)]
    wide[0].requires_grad_()
    some = labels.masked_fill(torch.arange(rows) % 3 == 2, -100)
    shift = normal(classes, seed=9, dtype=dtype)
    for reduction, (y, bias) in itertools.product(("mean", "sum", "none"), ((labels, None), (some, shift))):
        for temperature, general in ((1.0, "kl"), (2.5, "soft_ce")):
            options = {"temperature": temperature, "general": general, "reduction": reduction}
            with running_on(backend):
                got = functional.head_dual_loss(student, teacher, head, y, bias=bias, **options)
            doubled = None if bias is None else bias.double()
            want = reference.head_dual_loss(*wide, y, bias=doubled, **options)
            for a, b in zip(got, want, strict=True):
                assert_close(a, b, "formula", accumulation(dtype), b.abs().clamp(min=10))  # differences of logits
            for a, b in zip(gradients(got, student), gradients(want, wide[0]), strict=True):
                # one class has cotangents of 0 but for rounding: measured against the head that makes them
                assert_close(a, b, "formula", dtype, torch.cat([b, head.double()]) if classes == 1 else None)


@pytest.mark.parametrize("bias", [None, normal(101, seed=7)], ids=["no bias", "bias"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_it_is_what_torch_computes(backend: str, bias: Tensor | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The formula itself is judged by PyTorch's losses, with its rule for labels of -100."""
    limit(monkeypatch, 4, 101, F64)
    student, teacher, head, labels = inputs(17, 101, 8)
    labels[::4] = -100
    student.requires_grad_()
    with running_on(backend):
        ours = functional.head_dual_loss(student, teacher, head, labels, bias=bias)
    theirs = by_torch(student, teacher, head, labels, bias)
    for a, b in zip((*ours, *gradients(ours, student)), (*theirs, *gradients(theirs, student)), strict=True):
        assert_close(a, b, "formula", F64)


@pytest.mark.parametrize("backend", BACKENDS)
def test_first_derivative_by_finite_differences(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    limit(monkeypatch, 2, 11, F64)
    student, teacher, head, labels = inputs(5, 11, 4)
    labels[1] = -100
    with running_on(backend):
        for reduction in ("mean", "sum", "none"):
            assert torch.autograd.gradcheck(
                lambda x, r=reduction: functional.head_dual_loss(x, teacher, head, labels, 2.0, reduction=r),
                student.requires_grad_(),
            )


@pytest.mark.parametrize("backend", BACKENDS)
def test_without_rows_that_count_the_losses_are_zero(backend: str) -> None:
    """PyTorch's mean over nothing is NaN, which a batch of prompts without an answer would bring into the weights."""
    student, teacher, head, labels = inputs(4, 9, 3)
    student.requires_grad_()
    for rows in (slice(4), slice(0)):
        with running_on(backend):
            losses = functional.head_dual_loss(student[rows], teacher[rows], head, torch.full_like(labels, -100)[rows])
        assert [loss.item() for loss in losses] == [0, 0]
        assert not any(gradient.any() for gradient in gradients(losses, student))


@pytest.mark.parametrize("special", [float("inf"), float("nan")])
@pytest.mark.parametrize("backend", BACKENDS)
def test_padding_may_hold_anything(backend: str, special: float) -> None:
    """Attention without a key gives NaN in rows of padding."""
    student, teacher, head, labels = inputs(6, 31, 5)
    labels[2] = -100
    kept = torch.arange(6) != 2
    found = []
    for some in (slice(None), kept):
        x, t = student.clone(), teacher.clone()
        x[2, 1], t[2, 3] = special, special
        x = x[some].requires_grad_()
        with running_on(backend):
            losses = functional.head_dual_loss(x, t[some], head, labels[some])
        found.append((*losses, *(g if len(g) == 5 else g[kept] for g in gradients(losses, x))))
    for a, b in zip(*found, strict=True):
        assert_close(a, b, "formula", F64)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_step_of_the_optimizer_projects_the_same_gradients(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through a layer, by `ProGradAdamW.backward`: two backwards, neither of which sees the other's gradient."""
    limit(monkeypatch, 3, 50, F64)
    _, teacher, head, _ = inputs(11, 50, 6)
    labels = (teacher @ head.T).argmin(1)  # against what the teacher says
    found = []
    for loss in (functional.head_dual_loss, by_torch):
        layer = torch.nn.Parameter(-0.2 * torch.eye(6, dtype=F64) + 0.02 * normal(6, 6, seed=8))
        optimizer = pf.ProGradAdamW([layer], lr=0.1)
        with running_on(backend):
            optimizer.backward(*loss(teacher @ layer, teacher, head, labels))
            gradient = layer.grad.clone()
            optimizer.step()
        found.append((gradient, layer, optimizer.conflict.cosine))
    assert found[0][2] < 0  # so that there is something to project
    for kind, a, b in zip(("formula", "trajectory"), found[0], found[1], strict=False):
        assert_close(a, b, kind, F64)


class Room(TorchDispatchMode):
    """Counts the bytes of each tensor that an operator makes."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        made = result if isinstance(result, tuple) else (result,)
        sizes = [x.untyped_storage().nbytes() for x in made if isinstance(x, Tensor)]
        self.largest = max(self.largest, *sizes, 0)
        return result


def test_no_more_logits_than_those_of_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that the kernel makes is larger than two matrices of logits of a chunk."""
    rows, classes, width = 64, 3001, 4
    limit(monkeypatch, 8, classes, torch.float32)
    student, teacher, head, labels = inputs(rows, classes, width, torch.float32)
    losses, cotangents = torch.empty(2), torch.empty(2, rows, width)
    kernel = family._kernel  # below the dispatcher, where a mode sees into it
    with running_on("cpu" if "cpu" in BACKENDS else "reference"), Room() as room:
        kernel(student, teacher, head, labels, None, 1.0, False, 1, losses=losses, cotangents=cotangents)
    assert room.largest == 2 * 8 * classes * 4


def test_compiles_in_one_graph() -> None:
    student, teacher, head, labels = inputs(5, 11, 4)
    student.requires_grad_()
    compiled = torch.compile(functional.head_dual_loss, fullgraph=True, backend="aot_eager")
    ours, eager = (loss(student, teacher, head, labels) for loss in (compiled, functional.head_dual_loss))
    for a, b in zip((*ours, *gradients(ours, student)), (*eager, *gradients(eager, student)), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"teacher_features": torch.zeros(2, 4)}, r"teacher_features: expected the student's shape \(3, 4\)"),
        ({"teacher_features": torch.zeros(3, 4, requires_grad=True)}, "teacher_features: expected a tensor that is"),
        ({"head": torch.zeros(5, 3)}, "head: expected the width of the features, 4, got 3"),
        ({"head": torch.zeros(5, 4, requires_grad=True)}, "head: expected a tensor that is fixed"),
        ({"bias": torch.zeros(4)}, r"bias: expected shape \(5,\)"),
        ({"labels": torch.tensor([0, 5, -100])}, r"labels: expected class indices 0 ... 4, got 0 ... 5"),
        ({"labels": torch.tensor([0, -1, 2])}, r"labels: expected class indices 0 ... 4, got -1 ... 2"),
        ({"student_features": torch.zeros(1, 3, 4)}, r"student_features: expected shape \(rows, width\)"),
    ],
)
def test_bad_arguments(change: dict[str, Tensor], message: str) -> None:
    arguments = {
        "student_features": torch.zeros(3, 4),
        "teacher_features": torch.zeros(3, 4),
        "head": torch.zeros(5, 4),
        "labels": torch.tensor([0, 1, 4]),
    }
    with pytest.raises(ValueError, match=message):
        functional.head_dual_loss(**(arguments | change))
