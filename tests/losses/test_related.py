"""XERM and SRD: edges that the golden files do not reach, and what they refuse."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import prograd_fast as pf
from prograd_fast.losses import XERM, causal_norm_logits, ldam_margins, prior_offset
from prograd_fast.reference import xerm_weights
from tests.ops.support import DTYPES, accumulation, normal
from tests.tolerances import assert_close

LABELS = torch.tensor([0, 4, 2, 2])


def by_formula(z: Tensor, f: Tensor, c: Tensor, gamma: float, eps: float, temperature: float) -> tuple[Tensor, Tensor]:
    """xERM's two losses from softmax and log, for logits without margins."""
    fits = [(-logits.softmax(1)[range(4), LABELS].log()) ** gamma for logits in (f, c)]
    w = fits[1] / (fits[0] + fits[1] + eps)
    task = -(1 - w) * z.softmax(1)[range(4), LABELS].log()
    soft = -(temperature**2) * ((c / temperature).softmax(1) * (z / temperature).softmax(1).log()).sum(1)
    return task.mean(), (w * soft).mean()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_xerm_against_its_formula(dtype: torch.dtype) -> None:
    z, f = normal(4, 5, seed=1, dtype=dtype), normal(4, 5, seed=2, dtype=dtype)
    train = torch.tensor([0.5, 0.2, 0.15, 0.1, 0.05], dtype=torch.float64)
    offset = prior_offset(train, torch.full((5,), 0.2, dtype=torch.float64))
    criterion = XERM(offset, gamma=2.0, temperature=1.5)
    expected = by_formula(z.double(), f.double(), f.double() + offset, 2.0, 1e-5, 1.5)
    for given in (
        criterion(z, f, LABELS),
        XERM(gamma=2.0, temperature=1.5)(z, f, LABELS, (f + offset).to(torch.float64)),
    ):
        for actual, wanted in zip(given, expected, strict=True):
            assert_close(actual, wanted, "formula", accumulation(dtype))


def test_experts_are_summed_with_the_weights_of_their_mean() -> None:
    z, f = normal(3, 4, 5, seed=1).requires_grad_(), normal(3, 4, 5, seed=2)
    offset, margins = normal(5, seed=3), ldam_margins(torch.tensor([100, 50, 20, 5, 1]).double())
    task, general = XERM(offset, gamma=1.0, margins=margins)(z, f, LABELS)
    w_f, w_c = xerm_weights(f.mean(0), f.mean(0) + offset, LABELS, 1.0)
    hard = z - margins[LABELS].unsqueeze(1) * F.one_hot(LABELS, 5)
    expected_task = sum((w_f * F.cross_entropy(hard[e], LABELS, reduction="none")).mean() for e in range(3))
    soft = [-((f[e] + offset).softmax(1) * z[e].log_softmax(1)).sum(1) for e in range(3)]
    expected_general = sum((w_c * one).mean() for one in soft)
    for actual, expected in ((task, expected_task), (general, expected_general)):
        assert_close(actual, expected, "formula", torch.float64)
        (a,) = torch.autograd.grad(actual, z, retain_graph=True)
        (b,) = torch.autograd.grad(expected, z, retain_graph=True)
        assert_close(a, b, "formula", torch.float64)


@pytest.mark.parametrize("eps", [0.0, 1e-5])
def test_weights_are_never_nan(eps: float) -> None:
    """Certain and right in both (0/0 without ε): factual, as in the limit; wrong beyond measure in one, or in both."""
    sure, wrong = torch.tensor([200.0, 0.0]), torch.tensor([-math.inf, 0.0])
    factual = torch.stack([sure, sure, wrong, wrong])
    counterfactual = torch.stack([sure, wrong, sure, wrong])
    labels = torch.zeros(4, dtype=torch.int64)
    w_f, w_c = xerm_weights(factual, counterfactual, labels, 2.0, eps)
    assert w_c.tolist() == [0, 1, 0, 0.5]
    assert w_f.tolist() == [1, 0, 1, 0.5]
    student = torch.randn(4, 2, requires_grad=True)
    task, general = XERM(gamma=2.0, eps=eps)(student, factual, labels, counterfactual)
    assert torch.autograd.grad(task + general, student)[0].isfinite().all()


def test_no_gradient_goes_into_the_weights() -> None:
    z, f = normal(4, 5).requires_grad_(), normal(4, 5, seed=1)
    criterion = XERM(torch.zeros(5), gamma=1.0)
    assert torch.autograd.gradcheck(lambda x: criterion(x, f, LABELS), z)
    assert {"offset"} == set(criterion.state_dict())  # moves with .to(device), and is in checkpoints


def test_causal_norm_logits_of_heads() -> None:
    """Two heads are two classifiers on halves of the features, each scaled by τ/K."""
    x, w, c = normal(3, 8, seed=1), normal(5, 8, seed=2), normal(8, seed=3)
    for mean in (None, c):
        halves = [
            causal_norm_logits(x[:, half], w[:, half], None if mean is None else mean[half], tau=8.0)
            for half in (slice(4), slice(4, 8))
        ]
        assert_close(causal_norm_logits(x, w, mean, heads=2), halves[0] + halves[1], "formula", torch.float64)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"student_logits": torch.zeros(5)}, ValueError, "student_logits: expected shape \\(batch, classes\\)"),
        ({"student_logits": torch.zeros(4, 5).long()}, TypeError, "student_logits: expected a floating-point"),
        ({"factual_logits": torch.zeros(4, 6)}, ValueError, "factual_logits: expected the student's shape"),
        ({"factual_logits": torch.zeros(4, 5, requires_grad=True)}, ValueError, "factual_logits: .* fixed"),
        ({"counterfactual_logits": torch.zeros(4, 5)}, ValueError, "got both. PC and RIDE have an offset"),
        ({"labels": torch.tensor([0, 5, 2, 2])}, ValueError, "labels: expected class indices 0 ... 4"),
        ({"labels": torch.tensor([0, -100, 2, 2])}, ValueError, "labels: expected class indices 0 ... 4"),
        ({"labels": torch.zeros(3).long()}, ValueError, "labels: expected shape \\(4,\\)"),
    ],
)
def test_xerm_refuses(change: dict[str, Tensor], error: type[Exception], message: str) -> None:
    arguments = {"student_logits": torch.zeros(4, 5), "factual_logits": torch.zeros(4, 5), "labels": LABELS}
    with pytest.raises(error, match=message):
        XERM(torch.zeros(5))(**(arguments | change))


def test_xerm_without_counterfactual_logits_says_which_variant_needs_what() -> None:
    with pytest.raises(ValueError, match="got neither"):
        XERM()(torch.zeros(4, 5), torch.zeros(4, 5), LABELS)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: XERM(gamma=0.0), "gamma, eps: expected"),
        (lambda: XERM(eps=-1.0), "gamma, eps: expected"),
        (lambda: XERM(temperature=0.0), "temperature: expected a number above 0"),
        (lambda: prior_offset(torch.tensor([1.0, 0.0]), torch.ones(2)), "train_prior: .* got 0.0 for class 1"),
        (lambda: prior_offset(torch.ones(2), torch.ones(3)), "test_prior: expected shape \\(2,\\)"),
        (lambda: ldam_margins(torch.tensor([3, 0])), "class_counts: .* class 1"),
        (lambda: pf.losses.TextToText(0.0), "scale: expected a number above 0"),
        (lambda: pf.losses.SRD(-1.0), "feature_factor: expected"),
    ],
)
def test_bad_settings(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"student_features": torch.zeros(2, 3)}, "student_features: expected shape \\(batch, channels"),
        ({"student_features": torch.zeros(2, 4, 8, 8)}, "student_features: expected the teacher's batch and channels"),
        ({"teacher_features": torch.zeros(2, 3, 4, 4, requires_grad=True)}, "teacher_features: .* fixed"),
        ({"teacher_logits": torch.zeros(2, 7, requires_grad=True)}, "teacher_logits: .* fixed"),
        ({"cross_logits": torch.zeros(7)}, "cross_logits: expected shape \\(batch, classes\\)"),
    ],
)
def test_srd_refuses(change: dict[str, Tensor], message: str) -> None:
    arguments = {
        "student_features": torch.zeros(2, 3, 8, 8),
        "teacher_features": torch.zeros(2, 3, 4, 4),
        "cross_logits": torch.zeros(2, 7),
        "teacher_logits": torch.zeros(2, 7),
    }
    pf.losses.SRD()(**arguments)
    with pytest.raises(ValueError, match=message):
        pf.losses.SRD()(**(arguments | change))
