"""Each training option does what it says: precision, accumulation, early stop."""

import pytest
import torch

from prograd_fast.cli.train import _tell_idle
from prograd_fast.methods import GDA, CoOp, ZeroShot
from prograd_fast.training import TrainOptions, tune
from prograd_fast.training.update import update
from tests.tolerances import assert_close
from tests.training.support import make_learner


def test_accumulated_parts_give_the_update_of_the_whole_batch():
    # 30 pictures in 4 parts of 8, 8, 8, 6: means of parts count by their size. Rows of zeros before the words: without
    # them the student starts as the teacher, and the first cosine is that of rounding.
    whole, parts = (make_learner(CoOp(n_ctx=6), torch.float64) for _ in range(2))
    for _ in range(5):
        values = [
            update(learner, (learner.task.image_features, learner.task.labels), options)
            for learner, options in ((whole, TrainOptions()), (parts, TrainOptions(accumulate=4)))
        ]
        for name in ("task", "general", "cosine"):
            assert_close(values[1][name], values[0][name], "trajectory", torch.float32)
    assert_close(parts.context.ctx, whole.context.ctx, "trajectory", torch.float64)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_precision_of_the_step(precision):
    fp32, low = (make_learner(CoOp(lr=1.0, epochs=10)) for _ in range(2))
    expected, history = tune(fp32), tune(low, options=TrainOptions(precision))
    assert history.completed
    assert low.context.ctx.dtype == torch.float32
    assert not torch.equal(low.context.ctx, fp32.context.ctx)
    # fp16 begins with a scale that overflows: steps that the scaler skips show as repeated losses
    losses = [now for now, later in zip(history.task_loss, [*history.task_loss[1:], None], strict=True) if now != later]
    expected_losses = expected.task_loss[: len(losses)]
    assert len(losses) >= 7
    assert_close(torch.tensor(losses), torch.tensor(expected_losses), "autocast training", torch.bfloat16)
    assert losses[-1] < 0.5 * losses[0]  # far more than the tolerance: it was the steps that agreed


def test_stops_when_validation_no_longer_rises_and_keeps_the_best():
    accuracies = iter([0.2, 0.5, 0.4, 0.5, 0.3, 0.9])  # equal is not better; 0.9 is never seen
    learner, states = make_learner(CoOp(epochs=20)), []

    def validate() -> float:
        states.append(learner.context.ctx.detach().clone())
        return next(accuracies)

    history = tune(learner, options=TrainOptions(patience=3), validate=validate)
    assert history.validation == [0.2, 0.5, 0.4, 0.5, 0.3]
    assert len(history.task_loss) == 5
    assert torch.equal(learner.context.ctx, states[1])


def test_patience_needs_validation_pictures():
    with pytest.raises(ValueError, match="patience: expected validation pictures"):
        tune(make_learner(), options=TrainOptions(patience=1))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"precision": "fp8"}, "precision: expected one of fp32, bf16, fp16, got 'fp8'"),
        ({"accumulate": 0}, "accumulate: expected 1 or more, got 0"),
        ({"patience": 0}, "patience: expected 1 or more, got 0"),
        ({"views": -1}, "views: expected 0 or more, got -1"),
    ],
)
def test_options_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message):
        TrainOptions(**settings)


def test_options_of_steps_that_a_method_does_not_take_are_told(capsys):
    options = TrainOptions(views=3, patience=2)
    _tell_idle(CoOp(), options)
    _tell_idle(GDA(), TrainOptions(graph=True))
    assert capsys.readouterr().out == ""
    _tell_idle(GDA(), options)  # which takes crops
    assert capsys.readouterr().out == "GDA takes no training steps: --patience changes nothing.\n"
    _tell_idle(ZeroShot(), options)
    assert capsys.readouterr().out == "zero-shot takes no training steps: --patience, --views change nothing.\n"
