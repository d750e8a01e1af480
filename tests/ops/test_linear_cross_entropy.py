"""text_to_text_loss and its operator on every backend against the formula that stores all logits."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from prograd_fast import functional, reference
from tests.ops.support import BACKENDS, DTYPES, accumulation, assert_same_bits, normal, running_on
from tests.tolerances import assert_close

SCALE = 7.0


def inputs(templates: int, classes: int, width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    learned = F.normalize(normal(classes, width, seed=1), dim=1).to(dtype)
    return learned, F.normalize(normal(templates, classes, width, seed=2), dim=2).to(dtype)


# templates, classes, width: one of each; one template; fewer sentences than a block; several blocks of sentences, of
# which the last is incomplete, and of classes
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 9, 4), (3, 10, 64), (5, 300, 24)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_parity(backend: str, dtype: torch.dtype, shape: tuple[int, int, int]) -> None:
    learned, written = inputs(*shape, dtype)
    learned.requires_grad_()
    with running_on(backend):
        loss = functional.text_to_text_loss(learned, written, SCALE)
        (gradient,) = torch.autograd.grad(loss, learned)
    assert (loss.dtype, gradient.dtype) == (accumulation(dtype), dtype)
    wide = learned.detach().double().requires_grad_()
    expected = reference.text_to_text_loss(wide, written.double(), SCALE)
    assert_close(loss, expected, "formula", accumulation(dtype), expected.clamp(min=SCALE))  # differences of logits
    # a single class has a gradient of 0 but for rounding
    (by_class,) = torch.autograd.grad(expected, wide)
    assert_close(gradient, by_class, "formula", dtype, SCALE * wide if shape[1] == 1 else None)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradcheck(backend: str) -> None:
    learned, written = inputs(2, 4, 5, torch.float64)
    learned.requires_grad_()
    with running_on(backend):
        assert torch.autograd.gradcheck(lambda u: 3 * functional.text_to_text_loss(u, written, SCALE), learned)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_softmax_goes_over_the_learned_prompts(backend: str) -> None:
    """The other axis, of the README, has another value."""
    learned, written = inputs(3, 6, 8, torch.float64)
    logits = SCALE * torch.einsum("id,ljd->lij", learned, written)
    diagonal = torch.arange(6).expand(3, 6)
    with running_on(backend):
        loss = functional.text_to_text_loss(learned, written, SCALE)
    assert_close(loss, F.cross_entropy(logits, diagonal), "formula", torch.float64)
    assert abs(loss - F.cross_entropy(logits.mT, diagonal)) > 1e-3


@pytest.mark.parametrize("backend", BACKENDS)
def test_operator_takes_any_labels_and_layout(backend: str) -> None:
    x, w, labels = normal(9, 12).t().contiguous().t(), normal(5, 24)[:, ::2], torch.tensor([4, 0, 2, 2, 1, 3, 0, 4, 4])
    with running_on(backend):
        loss, cotangents = torch.ops.prograd_fast.linear_cross_entropy(x, w, labels, SCALE)
    leaf = w.clone().requires_grad_()
    expected = F.cross_entropy(SCALE * x @ leaf.T, labels)
    assert_close(loss, expected, "formula", torch.float64)
    assert_close(cotangents, torch.autograd.grad(expected, leaf)[0], "formula", torch.float64)


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_templates(backend: str) -> None:
    with running_on(backend):
        assert functional.text_to_text_loss(torch.ones(3, 4), torch.ones(0, 3, 4), SCALE).isnan()


@pytest.mark.parametrize("classes", [1, 100, 600])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_any_number_of_threads_gives_the_same_bits(dtype: torch.dtype, classes: int) -> None:
    learned, written = inputs(3, classes, 96, dtype)
    rows, labels = written.flatten(0, 1), torch.arange(classes).repeat(3)
    assert_same_bits(lambda: torch.ops.prograd_fast.linear_cross_entropy(rows, learned, labels, SCALE))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"class_features": torch.zeros(5)}, ValueError, "class_features: expected shape \\(classes, width\\)"),
        (
            {"template_features": torch.zeros(3, 4, 6)},
            ValueError,
            "template_features: expected shape \\(templates, 5, 6\\)",
        ),
        ({"template_features": torch.zeros(5, 6)}, ValueError, "template_features: expected shape"),
        ({"template_features": torch.zeros(3, 5, 6).long()}, TypeError, "template_features: expected a floating-point"),
        ({"template_features": torch.zeros(3, 5, 6, requires_grad=True)}, ValueError, "template_features: .* fixed"),
        ({"template_features": torch.zeros(3, 5, 6, device="meta")}, ValueError, "devices: expected one for all"),
    ],
)
def test_bad_arguments(change: dict[str, Tensor], error: type[Exception], message: str) -> None:
    arguments = {"class_features": torch.zeros(5, 6), "template_features": torch.zeros(3, 5, 6)}
    with pytest.raises(error, match=message):
        functional.text_to_text_loss(**(arguments | change), scale=SCALE)
