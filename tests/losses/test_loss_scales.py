"""Guards gradients of 16-bit logits and features under a loss scale: as good as those of PyTorch's losses."""

from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from prograd_fast import functional, reference
from prograd_fast.ops.common import REDUCTIONS
from prograd_fast.ops.registry import SHORTCUTS
from tests.ops.support import BACKENDS, normal, running_on

WAYS = [*BACKENDS, *(f"{backend} through torch.library" for backend in BACKENDS)]

HALVES = [torch.float16, torch.bfloat16]
SCALES = [2.0**k for k in (0, 8, 15, 16, 24)]
Losses = Callable[[Tensor], tuple[Tensor, ...]]


def torch_losses(z: Tensor, teacher: Tensor, labels: Tensor, reduction: str = "mean", **weights: Tensor) -> tuple:
    """Cross-entropy and KL divergence by PyTorch's functions, in float32 or wider as under autocast."""
    task = F.cross_entropy(z, labels, reduction="none")
    general = F.kl_div(z.log_softmax(1), teacher.log_softmax(1), reduction="none", log_target=True).sum(1)
    rows = (task * weights.get("task_weight", 1), general * weights.get("general_weight", 1))
    return rows if reduction == "none" else tuple(getattr(loss, reduction)() for loss in rows)


def upstream(losses: tuple[Tensor, ...]) -> Iterator[list[float]]:
    """Factors of the losses: each alone, and all with unequal ones."""
    for k in range(len(losses)):
        yield [float(i == k) for i in range(len(losses))]
    if len(losses) > 1:
        yield [1.0, -0.3]


def scaled_gradient(losses: Losses, argument: Tensor, factors: list[float], scale: float) -> Tensor:
    """Of scale · Σ factor · loss, as a training loop takes it; a loss with the factor 0 is left out."""
    argument = argument.clone().requires_grad_()
    terms = [factor * loss.sum() for factor, loss in zip(factors, losses(argument), strict=True) if factor]
    (scale * sum(terms)).backward()
    return argument.grad


def assert_as_good_as_torch(ours: Losses, theirs: Losses, argument: Tensor) -> None:
    """At every scale, against float64: finite where theirs is, no more zeros, no larger errors."""
    for factors in upstream(ours(argument)):
        exact = scaled_gradient(theirs, argument.double(), factors, 1.0)
        for scale in SCALES:
            got = scaled_gradient(ours, argument, factors, scale)
            other = scaled_gradient(lambda x: theirs(x.float()), argument, factors, scale)
            assert got.dtype == argument.dtype
            assert torch.equal(got.isfinite(), other.isfinite()), scale
            finite = other.isfinite()
            if not finite.any():
                continue
            assert (got == 0).sum() <= 1.02 * (other == 0).sum() + 1, scale
            # in steps of the dtype at the result; of float32 at the largest one, finite or not, where terms cancel
            wanted = scale * exact[finite]
            step = torch.finfo(argument.dtype).eps * wanted.abs() + 4e-6 * scale * exact.abs().max()
            step += torch.finfo(argument.dtype).smallest_normal * torch.finfo(argument.dtype).eps
            errors = [((x[finite].double() - wanted).abs() / step).max() for x in (got, other)]
            assert errors[0] <= 1.1 * errors[1] + 0.1, (scale, errors)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("rows", [1, 32, 1024])
@pytest.mark.parametrize("way", WAYS)
def test_dual_loss(way: str, rows: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    z, teacher = 4 * normal(rows, 50, seed=1, dtype=dtype), 4 * normal(rows, 50, seed=2, dtype=dtype)
    labels = torch.randint(50, (rows,), generator=torch.Generator().manual_seed(3))
    weights = {"task_weight": normal(rows, seed=4).abs().float(), "general_weight": normal(rows, seed=5).float()}
    backend, *through_library = way.split(maxsplit=1)
    with running_on(backend):
        if through_library:
            monkeypatch.delitem(SHORTCUTS, "dual_loss", raising=False)
        for reduction in REDUCTIONS:
            for options in ({}, weights):
                assert_as_good_as_torch(
                    lambda x, r=reduction, o=options: functional.dual_loss(x, teacher, labels, reduction=r, **o),
                    lambda x, r=reduction, o=options: torch_losses(x, teacher.to(x.dtype), labels, r, **o),
                    z,
                )


X, CLASSES, TEMPLATES = normal(6, 16), normal(9, 16, seed=1), normal(2, 9, 16, seed=2)
SAMPLES, TARGET = 3 * normal(4, 6, 9, seed=3), normal(6, 9, seed=4)
LABELS = torch.tensor([0, 8, 3, 3, 1, 5])


def others(functions: object) -> dict[str, tuple[Losses, Tensor]]:
    """The other losses as functions of their one free argument, fixed ones in its dtype; by name."""
    return {
        "linear_dual_loss": (
            lambda w: functions.linear_dual_loss(X.to(w.dtype), w, CLASSES.to(w.dtype), LABELS, 4.0),
            normal(9, 16, seed=5),
        ),
        "head_dual_loss": (
            lambda x: functions.head_dual_loss(x, X.to(x.dtype), CLASSES.to(x.dtype), LABELS),
            normal(6, 16, seed=6),
        ),
        "text_to_text_loss": (lambda u: (functions.text_to_text_loss(u, TEMPLATES.to(u.dtype), 4.0),), CLASSES),
        "sampled_cross_entropy": (lambda z: (functions.sampled_cross_entropy(z, LABELS),), SAMPLES),
        "sampled_log_probs": (lambda z: (functions.sampled_log_probs(z),), SAMPLES),
        "squared_error": (lambda x: (functions.squared_error(x, TARGET.to(x.dtype)),), TARGET + 1e-3 * X[:, :9]),
        "soft_wing": (lambda x: (functions.soft_wing(x, TARGET.to(x.dtype)),), 3 * X[:, :9]),
    }


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("name", sorted(others(functional)))
@pytest.mark.parametrize("backend", BACKENDS)
def test_other_losses(backend: str, name: str, dtype: torch.dtype) -> None:
    ours, argument = others(functional)[name]
    theirs, _ = others(reference)[name]
    fixed = [tensor.to(dtype).double() for tensor in (X, CLASSES, TEMPLATES, TARGET)]  # both sides see the same numbers
    for tensor, rounded in zip((X, CLASSES, TEMPLATES, TARGET), fixed, strict=True):
        tensor.copy_(rounded)
    with running_on(backend):
        assert_as_good_as_torch(ours, theirs, argument.to(dtype))


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_compiled(dtype: torch.dtype) -> None:
    z, teacher = 4 * normal(6, 50, seed=1, dtype=dtype), 4 * normal(6, 50, seed=2, dtype=dtype)

    @torch.compile(backend="aot_eager", fullgraph=True)
    def compiled(x: Tensor) -> tuple[Tensor, ...]:
        return functional.dual_loss(x, teacher, LABELS)

    assert_as_good_as_torch(compiled, lambda x: torch_losses(x, teacher.to(x.dtype), LABELS), z)


def test_grad_scaler_at_its_first_scale() -> None:
    """What GradScaler does with float16 logits: 2^16, unscaled in float32."""
    z, teacher = 4 * normal(32, 1000, seed=1, dtype=torch.float16), 4 * normal(32, 1000, seed=2, dtype=torch.float16)
    labels = torch.randint(1000, (32,), generator=torch.Generator().manual_seed(3))
    leaf = z.float().requires_grad_()
    task, general = functional.dual_loss(leaf.half(), teacher, labels)
    (2.0**16 * (task + general)).backward()
    wide = z.double().requires_grad_()
    sum(torch_losses(wide, teacher.double(), labels)).backward()
    torch.testing.assert_close((leaf.grad / 2**16).double(), wide.grad, rtol=2e-3, atol=2e-11)
