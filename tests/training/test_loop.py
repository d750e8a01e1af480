"""The loop takes the steps of the schedule, stops at a loss that is not finite, and tells what it measured."""

import math
import os
import sys

import numpy as np
import pytest
import torch

from prograd_fast.methods import CoOp, Losses, ProGradCoOp
from prograd_fast.optim import NOISE_FLOORS
from prograd_fast.training import TrainOptions, tensorboard, tune
from prograd_fast.training.evaluate import accuracy
from prograd_fast.training.update import update
from tests.training.support import STEPS, learner_of, make_learner

OVERFLOWING = 3e38  # a learning rate after which the context is no longer finite, or the tower's output is not


def test_history_has_every_step(clip, shapes):
    steps = []
    history = tune(learner_of(ProGradCoOp(epochs=25), clip, shapes), lambda: steps.append(1))
    assert history.completed
    assert len(history.task_loss) == len(history.general_loss) == len(history.cosine) == len(steps) == 25
    assert history.conflict == [cosine < 0 for cosine in history.cosine]
    assert history.conflict_rate == sum(history.conflict[1:]) / 24  # at the first step the student is the teacher
    assert history.task_loss[-1] < history.task_loss[0]


def test_history_has_the_training_accuracy(clip, shapes):
    learner, expected = learner_of(ProGradCoOp(epochs=5), clip, shapes), []
    losses = learner.losses

    def watched(features, labels):
        expected.append(accuracy(learner.scores(learner.task.class_names), features, labels))
        return losses(features, labels)

    learner.losses = watched
    history = tune(learner)
    assert history.accuracy == pytest.approx(expected[:5])
    parts = tune(learner_of(ProGradCoOp(epochs=5), clip, shapes), options=TrainOptions(accumulate=3))
    assert parts.accuracy[0] == pytest.approx(expected[0])  # of the whole batch


@pytest.mark.parametrize("steps", [1, 3, 50])  # the last step breaks; a look at the end; a look in between
def test_training_stops_and_keeps_the_last_good_context(clip, shapes, steps):
    learner = learner_of(CoOp(lr=OVERFLOWING, epochs=steps), clip, shapes)
    start = learner.net.prompt.ctx.detach().clone()
    taken = []
    history = tune(learner, lambda: taken.append(1))
    assert not history.completed
    assert len(history.task_loss) == 1  # the first step was finite, its update was not
    assert torch.equal(learner.net.prompt.ctx, start)
    assert len(taken) == min(steps, 20)


def test_last_good_context_is_the_one_before_a_bad_gradient(clip, shapes):
    learner = learner_of(ProGradCoOp(epochs=8), clip, shapes)
    contexts = []

    def poison_after_five_steps() -> None:
        contexts.append(learner.net.prompt.ctx.detach().clone())
        if len(contexts) == 5:
            learner.task.image_features[0, 0] = math.nan

    history = tune(learner, poison_after_five_steps)
    assert not history.completed
    assert len(history.task_loss) == 5
    # The loss at contexts[3] was the last finite one; that of contexts[4] was never seen to be.
    assert torch.equal(learner.net.prompt.ctx, contexts[3])


def test_rates_are_the_authors(clip, shapes):
    learner = learner_of(CoOp(lr=0.002, epochs=50, warmup_epochs=1), clip, shapes)
    rates = []
    tune(learner, lambda: rates.append(learner.optimizer.param_groups[0]["lr"]))
    assert rates[0] == pytest.approx(1e-5)
    assert rates[1] == 0.002
    assert rates[49] == pytest.approx(7.885299e-06, rel=1e-6)  # their log of epoch 50 of 50, KaiyangZhou/CoOp issue 26


def test_an_epoch_of_small_batches_has_every_picture_once(clip, shapes):
    learner = learner_of(CoOp(epochs=2, batch_size=3), clip, shapes)
    seen = []
    losses = learner.losses
    learner.losses = lambda features, labels: seen.append(features) or losses(features, labels)
    history = tune(learner)
    assert len(history.task_loss) == 6
    assert [len(batch) for batch in seen[:6]] == [3, 3, 2] * 2  # eight pictures: the last batch is not dropped
    for epoch in (seen[:3], seen[3:6]):
        rows = torch.cat(epoch)
        assert all((rows == row).all(1).sum() == 1 for row in learner.task.image_features)
    assert not torch.equal(seen[0], seen[3])


def test_clipped_gradient(clip, shapes):
    limit = 1e-3
    learner = learner_of(ProGradCoOp(n_ctx=6, lr=1.0, momentum=0.0, epochs=1, clip_grad_norm=limit), clip, shapes)
    before = learner.net.prompt.ctx.detach().clone()
    tune(learner)
    assert (learner.net.prompt.ctx - before).norm().item() == pytest.approx(limit, rel=1e-4)


def test_clipping_counts_all_parameters_of_the_optimizer():
    """One that was added to it counts too, as the authors clip all together: LASP's norms of the image tower."""
    limit, added = 1e-3, torch.nn.Parameter(torch.zeros(5))
    learner = make_learner(ProGradCoOp(n_ctx=6, lr=1.0, momentum=0.0, clip_grad_norm=limit))
    learner.optimizer.add_param_group({"params": [added]})
    own = learner.losses

    def losses(image_features: torch.Tensor, labels: torch.Tensor) -> Losses:
        return own(image_features, labels)._replace(task=own(image_features, labels).task + added.sum())

    learner.losses = losses
    before = learner.context.ctx.detach().clone()
    update(learner, (learner.task.image_features, learner.task.labels))
    moved = torch.cat([(learner.context.ctx - before).flatten(), added]).detach()
    assert moved.norm().item() == pytest.approx(limit, rel=1e-4)
    assert 0 < added.detach().norm().item() < limit


def test_the_first_general_gradient_is_no_direction():
    """The student starts as the teacher: what is left is rounding, and the step is the one without a teacher."""
    learner, plain = make_learner(ProGradCoOp(lr=0.1)), make_learner(ProGradCoOp(lr=0.1, lambda_=0.0))
    for one in (learner, plain):
        update(one, (one.task.image_features, one.task.labels))
    assert torch.equal(learner.context.ctx, plain.context.ctx)
    assert learner.optimizer.conflict.absent.tolist() == [1]


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_the_noise_floor_is_that_of_the_losses(precision, dtype):
    learner = make_learner()
    assert learner.optimizer.noise_floor is None
    update(learner, (learner.task.image_features, learner.task.labels), TrainOptions(precision))
    assert learner.optimizer.noise_floor == NOISE_FLOORS[dtype]


def test_features_of_each_epoch_are_used():
    learner, asked = make_learner(), []
    other = learner.task.image_features.flip(0).contiguous()

    def features(epoch: int) -> torch.Tensor:
        asked.append(epoch)
        return other

    tune(learner, features=features)
    assert asked == list(range(6))
    plain = make_learner()
    tune(plain)
    assert not torch.equal(plain.context.ctx, learner.context.ctx)


def test_tensorboard_reads_the_log(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with tensorboard(tmp_path / "log") as log:
        history = tune(make_learner(), log=log)
    events = EventAccumulator(str(tmp_path / "log")).Reload()
    for name, values in (("task", history.task_loss), ("accuracy", history.accuracy), ("cosine", history.cosine)):
        scalars = events.Scalars(name)
        assert [scalar.step for scalar in scalars] == list(range(STEPS))
        np.testing.assert_allclose([scalar.value for scalar in scalars], values, rtol=1e-6)
    assert {"general", "cross_entropy", "lr"} <= set(events.Tags()["scalars"])
    assert events.Scalars("lr")[0].value == pytest.approx(1e-5)


def test_tensorboard_not_installed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with (
        pytest.raises(ModuleNotFoundError, match=r"need tensorboard.*pip install .tensorboard>="),
        tensorboard(tmp_path),
    ):
        pass
    assert not os.listdir(tmp_path)
