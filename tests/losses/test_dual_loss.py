"""Guards the module DualLoss: its count of correct rows, its way through features, and its settings."""

import copy
import pickle

import pytest
import torch
from torch.nn import functional as F

import prograd_fast as pf
from tests.ops.support import BACKENDS, normal, running_on
from tests.tolerances import assert_close

LABELS = torch.tensor([0, 4, 1, 1])


@pytest.mark.parametrize("backend", BACKENDS)
def test_correct_counts_the_rows_whose_largest_logit_is_the_label(backend: str) -> None:
    criterion = pf.DualLoss()
    assert criterion.correct is None
    student = torch.zeros(4, 5)
    student[range(4), [0, 4, 2, 1]] = 1
    with running_on(backend):
        criterion(student, normal(4, 5), LABELS)
        assert (criterion.correct.dtype, criterion.correct.shape, int(criterion.correct)) == (torch.int64, (), 3)
        criterion(torch.zeros(4, 5, requires_grad=True), normal(4, 5), LABELS)
    assert int(criterion.correct) == 1  # the lowest class wins a tie
    assert not criterion.correct.requires_grad


@pytest.mark.parametrize("general", ["kl", "soft_ce"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_from_features_is_the_loss_of_their_logits(backend: str, general: str) -> None:
    features, classes, teacher = (F.normalize(normal(n, 8, seed=n), dim=1) for n in (4, 5, 6))
    teacher, criterion = teacher[:5], pf.DualLoss(2.0, general)
    with running_on(backend):
        student = classes.clone().requires_grad_()
        wanted = criterion(10.0 * features @ student.T, 10.0 * features @ teacher.T, LABELS)
        gradients = [torch.autograd.grad(loss, student, retain_graph=True)[0] for loss in wanted]
        correct = int(criterion.correct)
        got = criterion.from_features(features, student, teacher, LABELS, 10.0)
    assert int(criterion.correct) == correct
    for loss, want, gradient in zip(got, wanted, gradients, strict=True):
        assert_close(loss, want, "formula", torch.float64)
        assert_close(torch.autograd.grad(loss, student, retain_graph=True)[0], gradient, "formula", torch.float64)


def test_it_can_be_copied_and_saved_after_a_call() -> None:
    criterion = pf.DualLoss(2.0)
    criterion(normal(4, 5).requires_grad_(), normal(4, 5), LABELS)
    for other in (copy.deepcopy(criterion), pickle.loads(pickle.dumps(criterion))):
        assert (other.temperature, int(other.correct)) == (2.0, int(criterion.correct))
    assert not criterion.state_dict()


@pytest.mark.parametrize(("name", "value"), [("temperature", 0.0), ("general", "js")])
def test_settings_that_are_changed_are_checked_again(name: str, value: object) -> None:
    criterion = pf.DualLoss()
    setattr(criterion, name, value)
    with pytest.raises(ValueError, match=f"{name}: expected"):
        criterion(normal(4, 5), normal(4, 5), LABELS)
