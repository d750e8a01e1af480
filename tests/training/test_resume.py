"""Training that was stopped anywhere, by any means, goes on to the numbers of an unbroken run."""

import json
import random
import signal
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

from prograd_fast.methods import METHODS, CoOp, GradientMethod, TipAdapterF, Variational
from prograd_fast.training import TrainOptions, tune
from prograd_fast.training.checkpoint import Checkpoints
from tests.processes import Forked
from tests.slow import slow_but_for
from tests.training.support import MINI, RUN, STEPS, Killed, interrupted, make_learner, outcome


@pytest.mark.parametrize(
    ("method", "options", "seed"),
    [
        (MINI, TrainOptions(), 0),
        pytest.param(MINI, TrainOptions(), 1, marks=pytest.mark.slow),
        pytest.param(MINI, TrainOptions(), 2, marks=pytest.mark.slow),
        (CoOp(lr=0.1, epochs=30), TrainOptions(), 0),  # full batches
        (MINI, TrainOptions(precision="fp16"), 0),  # with the scaler's state
        (MINI, TrainOptions(precision="bf16", accumulate=3), 0),
        (MINI, TrainOptions(patience=3), 0),
        (TipAdapterF(lr=0.1, epochs=30), TrainOptions(patience=9), 0),  # a row for each picture
    ],
    ids=lambda value: str(value)[:40],
)
def test_stopped_anywhere_any_number_of_times_gives_the_same_numbers(tmp_path, method, options, seed):
    def trained(train):
        learner = make_learner(method)
        validate = lambda: float(next(learner.module.parameters()).detach().sum().sin())  # noqa: E731  goes up and down
        return outcome(learner, train(learner, options=options, validate=validate))

    expected = trained(tune)
    draw = random.Random(seed)
    stops = 0
    while True:
        torch.manual_seed(draw.randrange(1000))  # a new process has another random state
        try:
            got = trained(lambda *a, **k: interrupted(*a, tmp_path / "c", draw.randrange(2, 12), **k))
            break
        except Killed:
            stops += 1
    assert stops >= 1
    assert got[0].keys() == expected[0].keys()
    for name, tensor in expected[0].items():
        assert torch.equal(got[0][name], tensor)
    assert repr(got[1]) == repr(expected[1])  # repr: NaN is NaN


def test_killed_processes(tmp_path):
    """SIGKILL at random moments, in the middle of writing too; the last process finishes with the unbroken numbers."""
    expected = make_learner(MINI)
    history = tune(expected)

    def train() -> None:
        learner = make_learner(MINI)
        (tmp_path / "begun").touch()
        checkpoints = Checkpoints(tmp_path / "c", RUN, every=0.0)
        print(tune(learner, lambda: time.sleep(0.01), checkpoints=checkpoints).task_loss)
        save_file({"ctx": learner.context.ctx.detach()}, tmp_path / "ctx")

    draw = random.Random(0)
    for _ in range(2):
        process = Forked(train)
        while not (tmp_path / "begun").exists():
            time.sleep(0.002)
        time.sleep(draw.uniform(0.05, 0.25))  # of about 0.6 s
        process.send_signal(signal.SIGKILL)
        assert process.end()[0] == -signal.SIGKILL
        (tmp_path / "begun").unlink()
    code, out, err = Forked(train).end()
    assert code == 0, err
    assert json.loads(out) == history.task_loss
    assert torch.equal(load_file(tmp_path / "ctx")["ctx"], expected.context.ctx)


def test_bar_and_log_after_a_stop(tmp_path):
    with pytest.raises(Killed):
        interrupted(make_learner(), tmp_path / "c", after=17)
    steps, logged = [], []
    tune(
        make_learner(),
        lambda: steps.append(1),
        checkpoints=Checkpoints(tmp_path / "c", RUN),
        log=lambda step, values: logged.append(step),
    )
    assert len(steps) == STEPS
    assert logged == list(range(16, STEPS))  # what the checkpoint brings was logged before


def test_checkpoints_are_written_when_due(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(Checkpoints, "save", lambda self, state: written.append(state["epoch"]))
    tune(make_learner(), checkpoints=Checkpoints(tmp_path / "c", RUN, every=3600.0))
    assert not written
    tune(make_learner(), checkpoints=Checkpoints(tmp_path / "c", RUN, every=0.0))
    assert written == [epoch for epoch in range(6) for _ in range(5)]


GRADIENT_METHODS = [method for method in METHODS if issubclass(method, GradientMethod)]


# tests/methods/test_every_method.py stops each of them once; here they are stopped at several steps
@pytest.mark.parametrize("method", slow_but_for([Variational], GRADIENT_METHODS), ids=lambda method: method.name)
def test_every_method_goes_on_with_its_own_numbers(tmp_path, method):
    # stages, memories (trajectories, running averages) and random terms are in the checkpoint too
    settings = {"epochs": 4, "batch_size": 16, "lr": 0.05}
    settings |= {"early_epochs": 3, "rank": 2} if hasattr(method, "early_epochs") else {}
    settings = method.of(settings | ({"novel_names": ["kite"]} if hasattr(method, "novel_names") else {}))
    whole = make_learner(settings)
    expected = outcome(whole, tune(whole))
    draw, stops = random.Random(0), 0
    while True:
        torch.manual_seed(draw.randrange(1000))
        learner = make_learner(settings)
        try:
            got = outcome(learner, interrupted(learner, tmp_path / "c", draw.randrange(1, 6)))
            break
        except Killed:
            stops += 1
    assert stops >= 2
    for name, tensor in expected[0].items():
        assert torch.equal(got[0][name], tensor), name
    assert repr(got[1]) == repr(expected[1])
