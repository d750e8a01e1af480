"""Guards the linear losses of GPUs, products of the library in chunks of rows: they run here as they are.

What no CPU has, products of 16-bit matrices with float32 sums, is taken over by `Watch`. That they fit the tensors of a
GPU is seen on fake ones.
"""

import itertools
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from prograd_fast import functional
from prograd_fast.backends import chunked_products
from prograd_fast.ops.registry import checked
from prograd_fast.ops.row_chunks import multiplies_as_stored, row_chunks
from tests.ops.calls import CALLS, Sizes
from tests.ops.support import DTYPES, accumulation, normal, running_on
from tests.tolerances import assert_close

ops = torch.ops.prograd_fast
direct = SimpleNamespace(**chunked_products.OPERATORS)  # as kernels, where a dispatch mode sees into them
NAMES = sorted(chunked_products.OPERATORS)
NARROW = [torch.bfloat16, torch.float16]
SCALE = 7.0


@pytest.fixture
def rows_a_chunk(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int, torch.dtype], None]:
    """Set the limit so that a chunk has this many rows at most."""

    def limit(rows: int, classes: int, dtype: torch.dtype = torch.float32) -> None:
        monkeypatch.setattr(chunked_products, "CHUNK_BYTES", rows * classes * accumulation(dtype).itemsize)

    return limit


@pytest.fixture(autouse=True)
def on_the_formulas() -> Iterator[None]:
    """The losses of the chunks come from the formulas, not from kernels for CPUs."""
    with running_on("reference"):
        yield


@pytest.fixture
def registered() -> Iterator[None]:
    """The operators of the CPU run as those of a GPU do."""
    library = torch.library.Library("prograd_fast", "IMPL")
    for name, operator in chunked_products.OPERATORS.items():
        library.impl(name, checked(name, operator), "CPU")
    yield
    library._destroy()


def inputs(rows: int, classes: int, width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x, student, teacher = (
        F.normalize(normal(n, width, seed=seed), dim=1).to(dtype) for seed, n in enumerate((rows, classes, classes))
    )
    return x, student, teacher, torch.randint(0, classes, (rows,), generator=torch.Generator().manual_seed(3))


def results(rows: int, classes: int, width: int, dtype: torch.dtype, reduction: int) -> dict[str, Tensor]:
    """Room that holds NaN, so that what is not written shows."""
    dtype = accumulation(dtype)
    losses = torch.full((2, rows) if reduction == 0 else (2,), torch.nan, dtype=dtype)
    cotangents = torch.full((2, classes, width), torch.nan, dtype=dtype)
    return {"losses": losses, "cotangents": cotangents, "correct": torch.full((), -7)}


def dual(arguments: tuple[Any, ...], reduction: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """The results of the kernel for these arguments."""
    rows, width = arguments[0].shape
    written = results(rows, len(arguments[1]), width, dtype, reduction)
    direct.linear_dual_loss_out(*arguments, **written)
    return written


def by_formula(arguments: tuple[Any, ...], reduction: int) -> dict[str, Tensor]:
    """The same in float64, by the operator's reference."""
    wide = tuple(a.double() if isinstance(a, Tensor) and a.is_floating_point() else a for a in arguments)
    written = results(len(wide[0]), len(wide[1]), wide[0].shape[1], torch.float64, reduction)
    ops.linear_dual_loss_out(*wide, **written)
    return written


class Watch(TorchDispatchMode):
    """Watches a call: its operators but for views and room, the room it takes, and products that CPUs lack.

    Attributes:
        launched: names of the operators that compute.
        products: names of those among them that multiply matrices as they are stored.
        room: the number of elements of each tensor that was made.
    """

    def __init__(self) -> None:
        super().__init__()
        self.launched: list[str] = []
        self.products: list[str] = []
        self.room: list[int] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        kwargs = kwargs or {}
        name = function.overloadpacket.__name__
        assert name != "_local_scalar_dense", "a value is read"
        if "empty" in name:
            result = function(*args, **kwargs)
            self.room.append(result.numel())
            return result
        if not function.is_view and name != "promote_types":
            self.launched.append(name)
        if function in (torch.ops.aten.addmm.dtype_out, torch.ops.aten.baddbmm.dtype_out):
            total, a, b, dtype = args
            assert a.dtype == b.dtype
            assert (total.dtype, kwargs["out"].dtype) == (dtype, dtype)
            self.products.append(name)
            multiply = torch.addmm if name == "addmm" else torch.baddbmm
            return multiply(total, a.to(dtype), b.to(dtype), **kwargs)
        return function(*args, **kwargs)


# rows, classes, width, rows of a chunk: no rows; one of everything; an uneven last chunk; one row a chunk; chunks
# alike; chunks of eight rows, and one row in the last; all in one; one class; a limit below one row
SHAPES = [
    *((0, 5, 3, 2), (1, 1, 1, 1), (7, 10, 16, 3), (7, 10, 16, 1), (8, 10, 16, 4), (9, 97, 33, 8), (34, 97, 33, 40)),
    *((5, 1, 4, 2), (3, 4, 5, 0)),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dual_loss(dtype: torch.dtype, shape: tuple[int, int, int, int], rows_a_chunk: Callable[..., None]) -> None:
    rows, classes, width, limit = shape
    rows_a_chunk(limit, classes, dtype)
    acc = accumulation(dtype)
    tensors = inputs(rows, classes, width, dtype)
    extras = (normal(classes, dtype=acc), normal(rows, dtype=acc).abs(), normal(rows, dtype=acc))
    for (temperature, soft_ce), reduction in itertools.product(((1.0, False), (2.5, False), (2.5, True)), range(3)):
        for options in ((None, None, None), extras):
            arguments = (*tensors, *options, SCALE, temperature, soft_ce, reduction)
            got, want = dual(arguments, reduction, dtype), by_formula(arguments, reduction)
            if rows == 0:
                assert torch.equal(got["losses"].isnan(), want["losses"].isnan())
            else:
                assert_close(got["losses"], want["losses"], "formula", acc, want["losses"].abs().clamp(min=SCALE))
            # one class has cotangents of 0 but for rounding: measured against the features that make them
            scale = SCALE * tensors[0] if classes == 1 and rows else None
            assert_close(got["cotangents"], want["cotangents"], "formula", acc, scale)
            assert got["correct"] == want["correct"]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_cross_entropy(dtype: torch.dtype, shape: tuple[int, int, int, int], rows_a_chunk: Callable[..., None]) -> None:
    rows, classes, width, limit = shape
    rows_a_chunk(limit, classes, dtype)
    x, w, _, labels = inputs(rows, classes, width, dtype)
    acc = accumulation(dtype)
    loss, cotangents = torch.full((), 7.0, dtype=acc), torch.full((classes, width), torch.nan, dtype=acc)
    direct.linear_cross_entropy_out(x, w, labels, SCALE, loss=loss, cotangents=cotangents)
    leaf = w.double().requires_grad_()
    expected = F.cross_entropy(SCALE * x.double() @ leaf.T, labels)
    (by_class,) = torch.autograd.grad(expected, leaf)
    if rows == 0:
        assert loss.isnan()
        assert not cotangents.any()
        return
    assert_close(loss, expected, "formula", acc, expected.detach().clamp(min=SCALE))
    assert_close(cotangents, by_class, "formula", acc, SCALE * x if classes == 1 else None)


@pytest.mark.parametrize("dtype", NARROW, ids=str)
@pytest.mark.parametrize("limit", [3, 50])
def test_narrow_products(
    dtype: torch.dtype, limit: int, rows_a_chunk: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on tensor cores: the cotangents of the logits are rounded once, the losses see no rounding at all."""
    monkeypatch.setattr(chunked_products, "multiplies_as_stored", lambda device, dtype: dtype in NARROW)
    rows_a_chunk(limit, 30)
    tensors = inputs(50, 30, 20, dtype)
    for reduction in range(3):
        arguments = (*tensors, None, None, None, SCALE, 2.5, False, reduction)
        with Watch() as watch:
            got = dual(arguments, reduction, dtype)
        want = by_formula(arguments, reduction)
        chunks = -(-50 // limit)
        assert watch.products == ["addmm", "addmm", "baddbmm"] * chunks
        assert_close(got["losses"], want["losses"], "formula", torch.float32, want["losses"].abs().clamp(min=SCALE))
        for actual, expected in zip(got["cotangents"], want["cotangents"], strict=True):
            assert_close(actual, expected, "formula", dtype)


@pytest.mark.parametrize("limit", [1000, 3000])
def test_a_mean_in_float16_loses_no_cotangents(
    limit: int, rows_a_chunk: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is 1/600 of 1/3000: with both factors they would have three bits left."""
    monkeypatch.setattr(chunked_products, "multiplies_as_stored", lambda device, dtype: dtype in NARROW)
    rows_a_chunk(limit, 600)
    x, w = torch.ones(3000, 1).half(), torch.zeros(600, 1).half()
    arguments = (x, w, w, torch.zeros(3000, dtype=torch.int64), None, None, None, 1.0, 1.0, False, 1)
    with Watch():
        got = dual(arguments, 1, torch.float16)
    by_class = got["cotangents"][0, 1:]
    assert_close(by_class, torch.full_like(by_class, 1 / 600), "formula", torch.float16)


# what computes, in one chunk and in three: four launches a chunk, and the sums over the chunks
ONE = ["addmm", "addmm", "dual_loss_out", "baddbmm"]


@pytest.mark.parametrize(
    ("limit", "reduction", "expected"),
    [
        (9, 1, ONE),
        (9, 2, ONE),
        (9, 0, ONE),
        (3, 2, ONE * 3 + ["sum", "copy_", "sum", "copy_"]),
        (3, 1, ONE * 3 + ["sum", "copy_", "div_", "sum", "copy_"]),
        (3, 0, ONE * 3 + ["sum", "copy_"]),
    ],
)
def test_launches_of_the_dual_loss(
    limit: int, reduction: int, expected: list[str], rows_a_chunk: Callable[..., None]
) -> None:
    rows_a_chunk(limit, 11)
    arguments = (*inputs(9, 11, 5, torch.float32), *(torch.ones(n) for n in (11, 9, 9)), SCALE, 2.0, False, reduction)
    written = results(9, 11, 5, torch.float32, reduction)
    with Watch() as watch:
        direct.linear_dual_loss_out(*arguments, **written)
    assert watch.launched == expected


def test_launches_of_the_cross_entropy(rows_a_chunk: Callable[..., None]) -> None:
    x, w, _, labels = inputs(9, 11, 5, torch.float32)
    for limit, chunks in ((9, 1), (3, 3)):
        rows_a_chunk(limit, 11)
        loss, cotangents = torch.zeros(()), torch.zeros(11, 5)
        with Watch() as watch:
            direct.linear_cross_entropy_out(x, w, labels, SCALE, loss=loss, cotangents=cotangents)
        one = ["addmm", "sampled_cross_entropy_out", "baddbmm"]
        assert watch.launched == one * chunks + ["sum", "copy_", "div_"] * (chunks > 1)


def test_floating_point_operations(rows_a_chunk: Callable[..., None]) -> None:
    """8·B·C·D with a teacher, 4 without: no logits are computed twice."""
    rows, classes, width = 50, 30, 20
    rows_a_chunk(7, classes)
    arguments = (*inputs(rows, classes, width, torch.float32), None, None, None, SCALE, 2.0, False, 1)
    with FlopCounterMode(display=False) as with_teacher:
        dual(arguments, 1, torch.float32)
    x, w, _, labels = arguments[:4]
    with FlopCounterMode(display=False) as without:
        direct.linear_cross_entropy_out(x, w, labels, SCALE, loss=torch.zeros(()), cotangents=torch.zeros(w.shape))
    assert with_teacher.get_total_flops() == 8 * rows * classes * width
    assert without.get_total_flops() == 4 * rows * classes * width


@pytest.mark.parametrize("limit", [1, 8, 16])
def test_no_more_logits_than_those_of_a_chunk(limit: int, rows_a_chunk: Callable[..., None]) -> None:
    rows, classes, width = 40, 300, 4
    rows_a_chunk(limit, classes)
    arguments = (*inputs(rows, classes, width, torch.float32), None, None, None, SCALE, 2.0, False, 1)
    written = results(rows, classes, width, torch.float32, 1)
    with Watch() as watch:
        direct.linear_dual_loss_out(*arguments, **written)
    assert max(watch.room) == 2 * limit * classes  # student's and teacher's
    assert sum(watch.room) <= 4 * limit * classes + 3 * rows  # the cotangents as many; sums of each chunk


def test_the_limit_in_bytes() -> None:
    """The comment beside it says 768 rows of 21,841 classes; no chunk is a sliver, and all but the last are aligned."""

    def sizes(rows: int, row_bytes: int) -> list[int]:
        return [chunk.stop - chunk.start for chunk in row_chunks(rows, row_bytes, limit)]

    limit = chunked_products.CHUNK_BYTES
    assert sizes(768, 21_841 * 4) == [768]
    assert sizes(769, 21_841 * 4) == [392, 377]
    assert sizes(1024, 21_841 * 4) == [512, 512]
    assert sizes(34_000, 1000 * 4) == [11_336, 11_336, 11_328]
    assert sizes(0, 4) == [0]
    assert sizes(3, limit) == [1, 1, 1]
    assert sizes(3, limit + 1) == [1, 1, 1]
    assert sizes(30, limit // 15) == [8, 8, 8, 6]  # 15 of each would not be aligned
    assert sizes(21, limit // 7) == [7, 7, 7]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_on_a_fake_gpu(dtype: torch.dtype, rows_a_chunk: Callable[..., None]) -> None:
    """No value is read back, and nothing comes from another device; 16-bit matrices are multiplied as they are."""
    rows_a_chunk(4, 10, dtype)
    with FakeTensorMode():
        x, w, v = (torch.empty(n, 16, device="cuda:1", dtype=dtype) for n in (9, 10, 10))
        labels = torch.empty(9, device="cuda:1", dtype=torch.int64)

        def wide(*shape: int) -> Tensor:
            return torch.empty(shape, device="cuda:1", dtype=accumulation(dtype))

        written = {"losses": wide(2), "cotangents": wide(2, 10, 16), "correct": torch.empty_like(labels[0])}
        with Watch() as watch:
            direct.linear_dual_loss_out(x, w, v, labels, wide(10), wide(9), None, SCALE, 2.0, False, 1, **written)
            direct.linear_cross_entropy_out(x, w, labels, SCALE, loss=wide(), cotangents=wide(10, 16))
    a_chunk, without_teacher = ["addmm", "addmm", "baddbmm"], ["addmm", "baddbmm"]
    assert watch.products == (3 * a_chunk + 3 * without_teacher if dtype in NARROW else [])


def test_where_pytorch_has_narrow_products(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda, ask = torch.device("cuda"), multiplies_as_stored
    assert [ask(cuda, dtype) for dtype in DTYPES] == [False, False, True, True]
    assert not ask(torch.device("cpu"), torch.bfloat16)
    monkeypatch.setattr(torch.version, "hip", "6.0")
    assert not ask(cuda, torch.bfloat16)


@pytest.mark.parametrize("limit", [2, 100])
def test_results_of_any_dtype_and_strides(limit: int, rows_a_chunk: Callable[..., None]) -> None:
    rows_a_chunk(limit, 10)
    x, w, v, labels = inputs(7, 10, 6, torch.float32)
    arguments = (x.t().contiguous().t(), w.repeat(1, 2)[:, :6], v, labels, None, None, None, SCALE, 2.0, False, 1)
    want = by_formula(arguments, 1)
    for dtype in DTYPES:
        losses, correct = torch.zeros(4, dtype=dtype)[::2], torch.zeros((), dtype=torch.int64)
        cotangents = torch.zeros(6, 10, 2, dtype=dtype).permute(2, 1, 0)
        direct.linear_dual_loss_out(*arguments, losses=losses, cotangents=cotangents, correct=correct)
        kind = dtype if dtype in NARROW else torch.float32
        assert_close(losses, want["losses"], "formula", kind, want["losses"].abs().clamp(min=SCALE))
        assert_close(cotangents, want["cotangents"], "formula", kind)


# the narrower is converted, whichever it is; the two 16-bit dtypes meet in float32; a wider matrix sets the sums' dtype
@pytest.mark.parametrize(
    "dtypes",
    [
        (torch.bfloat16, torch.float32, torch.float32),
        (torch.float32, torch.float16, torch.float16),
        (torch.bfloat16, torch.float16, torch.bfloat16),
        (torch.float32, torch.float32, torch.float64),
        (torch.float32, torch.float64, torch.float32),
    ],
)
def test_dtypes_that_differ(dtypes: tuple[torch.dtype, ...], rows_a_chunk: Callable[..., None]) -> None:
    rows_a_chunk(3, 10)
    *matrices, labels = inputs(7, 10, 6, torch.float64)
    matrices = [matrix.to(dtype) for matrix, dtype in zip(matrices, dtypes, strict=True)]
    arguments = (*matrices, labels, None, None, None, SCALE, 2.0, False, 1)
    got, want = dual(arguments, 1, dtypes[1]), by_formula(arguments, 1)
    kind = accumulation(dtypes[1])
    assert_close(got["losses"], want["losses"], "formula", kind, want["losses"].abs().clamp(min=SCALE))
    assert_close(got["cotangents"], want["cotangents"], "formula", kind)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_memory_that_holds_anything(name: str, dtype: torch.dtype, rows_a_chunk: Callable[..., None]) -> None:
    """Room that was not written holds NaN here: none of it comes into a result."""
    rows_a_chunk(2, 5, dtype)
    args, written = CALLS[name](Sizes(rows=7, dtype=dtype))
    torch.use_deterministic_algorithms(True)
    try:
        for result in written.values():
            result.fill_(-7 if result.dtype == torch.int64 else torch.nan)
        getattr(direct, name)(*args, **written)
    finally:
        torch.use_deterministic_algorithms(False)
    for result in written.values():
        assert result.isfinite().all()
        assert (result != -7).all()


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize("name", [*NAMES, *(name.removesuffix("_out") for name in NAMES)])
def test_opcheck(name: str, registered: None, rows_a_chunk: Callable[..., None]) -> None:
    rows_a_chunk(2, 5, torch.float64)
    args, kwargs = CALLS[name](Sizes())
    torch.library.opcheck(getattr(ops, name).default, tuple(args), kwargs)


@pytest.mark.parametrize("autocast", [False, True])
def test_gradients(autocast: bool, registered: None, rows_a_chunk: Callable[..., None]) -> None:
    rows_a_chunk(4, 30, torch.float64)
    x, student, teacher, labels = inputs(9, 30, 8, torch.float64)
    student.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext():
        ours = functional.linear_dual_loss(x, student, teacher, labels, SCALE, 2.0)
        again = functional.text_to_text_loss(student[:9], x[None], SCALE)
    theirs = functional.dual_loss(SCALE * x @ student.T, SCALE * x @ teacher.T, labels, 2.0)
    plain = F.cross_entropy(SCALE * x @ student[:9].T, torch.arange(9))
    for a, b in zip((*ours, again), (*theirs, plain), strict=True):
        assert_close(a, b, "formula", torch.float64)
        (d_a,), (d_b,) = (torch.autograd.grad(3 * loss, student, retain_graph=True) for loss in (a, b))
        assert_close(d_a, d_b, "formula", torch.float64)


def test_arguments_that_require_grad(rows_a_chunk: Callable[..., None]) -> None:
    """An operator that writes is outside of autograd, also where the caller did not say so."""
    rows_a_chunk(4, 10)
    x, w, v, labels = inputs(9, 10, 4, torch.float32)
    got = dual((x, w.requires_grad_(), v, labels, None, None, None, SCALE, 2.0, False, 1), 1, torch.float32)
    assert not got["cotangents"].requires_grad
