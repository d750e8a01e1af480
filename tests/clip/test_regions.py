"""Boxes and patches as rows to learn from; with one patch a picture they are the pictures."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from prograd_fast.clip.regions import BACKGROUND, BoxCache, PatchCache, mean_class_features, soft_background_loss
from prograd_fast.methods import ProGradCoOp, Task
from prograd_fast.training import tune
from tests.tiny_clip import CLASS_NAMES, TOKENIZER, tiny_clip
from tests.tolerances import assert_close


def unit(*shape: int) -> Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64), dim=-1)


def test_patches_are_told_apart_by_their_label() -> None:
    cache = PatchCache(unit(2, 3, 24), torch.tensor([[0, BACKGROUND, 4], [BACKGROUND, 2, 2]]))
    features, labels = cache.foreground()
    assert labels.tolist() == [0, 4, 2, 2]
    assert torch.equal(features, cache.features.flatten(0, 1)[[0, 2, 4, 5]])
    assert torch.equal(cache.background(), cache.features.flatten(0, 1)[[1, 3]])


def test_boxes_are_told_apart_by_their_overlap() -> None:
    iou = torch.tensor([0.05, 0.1, 0.49, 0.5, 0.59, 0.6, 0.95, 1.0, 0.7])
    labels = torch.tensor([0, 1, 2, 3, 4, 0, 1, 2, BACKGROUND])
    cache = BoxCache(unit(9, 24), labels, iou)
    assert cache.foreground().labels.tolist() == [3, 4, 0, 1, 2]
    assert cache.foreground(0.6).labels.tolist() == [0, 1, 2]
    assert torch.equal(cache.background(), cache.features[1:3])
    assert [rows.labels.tolist() for rows in cache.binned()] == [[3, 4], [0], [], [], [1, 2]]
    assert torch.equal(cache.binned((0.5, 0.95))[1].features, cache.features[[6, 7]])


def test_one_patch_a_picture_learns_what_the_pictures_learn() -> None:
    """The same rows, so the same prompt, bit for bit."""
    features, labels = unit(10, 24), torch.arange(10) % len(CLASS_NAMES)
    cache = PatchCache(features[:, None], labels[:, None])
    learned = []
    for rows in ((features, labels), cache.foreground()):
        task = Task(tiny_clip(), TOKENIZER, CLASS_NAMES, *rows)
        learner = ProGradCoOp(epochs=3, batch_size=4, ctx_init="a photo of a").start(task)
        tune(learner)
        learned.append(learner.net.prompt.ctx.detach())
    assert torch.equal(*learned)


def test_soft_background_is_the_cross_entropy_to_all_classes_alike() -> None:
    logits = torch.tensor([[1.0, 2.0, -3.0], [40.0, 0.0, 0.0]], dtype=torch.float64, requires_grad=True)
    loss = soft_background_loss(logits)
    expected = F.cross_entropy(logits, torch.zeros(2, dtype=torch.int64), label_smoothing=1.0)
    assert_close(loss.detach(), expected.detach(), "formula", torch.float64)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert_close(gradient, (logits.detach().softmax(1) - 1 / 3) / 2, "formula", torch.float64)
    assert soft_background_loss(torch.zeros(0, 3)) == 0


def test_the_mean_of_prompts_is_a_unit_row() -> None:
    first, second = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    assert_close(mean_class_features([first, second]), torch.full((1, 2), 0.5**0.5), "formula", torch.float32)


FEATURES, LABELS = unit(2, 3, 24), torch.zeros(2, 3, dtype=torch.int64)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PatchCache(FEATURES[0], LABELS[0]), r"features: expected \(N, P, D\), got \(3, 24\)"),
        (lambda: PatchCache(FEATURES, LABELS[:, :2]), r"labels: expected int64 \(2, 3\).*got torch.int64 \(2, 2\)"),
        (lambda: PatchCache(FEATURES, LABELS.int()), r"labels: expected int64 \(2, 3\).*got torch.int32"),
        (lambda: PatchCache(FEATURES, LABELS - 100), "labels: expected class numbers, or -1 for background, got -100"),
        (lambda: PatchCache(2 * FEATURES, LABELS), "features: expected rows of unit length"),
        (lambda: BoxCache(FEATURES, LABELS, torch.ones(2, 3)), r"features: expected \(N, D\), got \(2, 3, 24\)"),
        (
            lambda: BoxCache(FEATURES[0], LABELS[0], torch.ones(2)),
            r"iou: expected one for each label, \(3,\), got \(2,\)",
        ),
        (lambda: BoxCache(FEATURES[0], LABELS[0], torch.full((3,), 1.5)), "iou: expected numbers from 0 to 1"),
        (lambda: BoxCache(FEATURES[0], LABELS[0], torch.full((3,), float("nan"))), "iou: expected numbers from 0 to 1"),
    ],
)
def test_what_does_not_fit_together(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
