"""Training that lasts: checkpoints, runs that go on from them, precision, accumulation, early stop, logs."""

import json
import math
import os
import random
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from prograd_fast.methods import METHODS, CoOp, GradientMethod, ProGrad, PromptTuningLearner, Task
from prograd_fast.training import Regime, tensorboard, tune
from prograd_fast.training.checkpoint import Checkpoints, load_checkpoint, save_checkpoint
from prograd_fast.training.loop import update
from tests.processes import Forked
from tests.tiny_clip import CLASS_NAMES, TOKENIZER, tiny_clip
from tests.tolerances import assert_close

RUN = {"method": "prograd", "seed": 3, "class_names": ["a", "b"]}
STATE = {
    "optimizer": {
        "state": {0: {"momentum_buffer": torch.randn(3, 2), "step": torch.tensor(4.0)}},
        "param_groups": [{}],
    },
    "betas": (0.9, 0.99),
    "list": [1, 2.5, None, True, "text", math.inf],
    "empty": torch.empty(0, 4),
    "half": torch.ones(2, dtype=torch.bfloat16),
    "random": torch.get_rng_state(),
    "view": torch.arange(10)[::2],
    "transposed": torch.randn(3, 2).T,
}


def make_learner(method=None, dtype=torch.float32, seed=0) -> PromptTuningLearner:
    """Six pictures of each of five classes, noisy copies of one random direction per class."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(len(CLASS_NAMES), 24, generator=generator, dtype=dtype)
    features = centres.repeat_interleave(6, 0) + 0.3 * torch.randn(30, 24, generator=generator, dtype=dtype)
    labels = torch.arange(len(CLASS_NAMES)).repeat_interleave(6)
    task = Task(tiny_clip(dtype=dtype), TOKENIZER, CLASS_NAMES, F.normalize(features, dim=-1), labels, seed)
    return (method or MINI).start(task)


# two warm-up epochs, batches of 7 of 30 pictures (the last has 2), clipping that acts: all that has a state or an order
MINI = ProGrad(lr=0.1, epochs=6, batch_size=7, warmup_epochs=2, clip_grad_norm=0.1, weight_decay=1e-3)
STEPS = 6 * 5


def same(one, other) -> bool:
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and one.stride() == other.clone().stride() and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return type(one) is type(other) and len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and one == other


# ---------------------------------------------------------------------------------------------------------------- file


def test_any_state_comes_back(tmp_path):
    save_checkpoint(tmp_path / "c", STATE, RUN)
    assert same(load_checkpoint(tmp_path / "c", RUN), STATE)
    assert [file.name for file in tmp_path.iterdir()] == ["c"]


def test_what_json_cannot_hold_is_refused_and_nothing_written(tmp_path):
    with pytest.raises(TypeError, match="a checkpoint cannot hold PosixPath"):
        save_checkpoint(tmp_path / "c", {"path": tmp_path}, RUN)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("change", [{"seed": 4}, {"class_names": ["a", "c"]}, {"new": 1}])
def test_checkpoint_of_another_run(tmp_path, change):
    save_checkpoint(tmp_path / "c", STATE, RUN)
    name = next(iter(change))
    with pytest.raises(ValueError, match=f"belongs to another run: its {name} is") as caught:
        load_checkpoint(tmp_path / "c", RUN | change)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("seed", range(60))
def test_damaged_checkpoints_are_refused(tmp_path, seed):
    # one flipped bit, a cut, a swapped block, bytes of something else: at random places of header, tree and tensors
    file, draw = tmp_path / "c", np.random.RandomState(seed)
    save_checkpoint(file, STATE, RUN)
    content = bytearray(file.read_bytes())
    at = int(draw.randint(len(content)))
    match seed % 4:
        case 0:
            content[at] ^= 1 << draw.randint(8)
        case 1:
            del content[at:]
        case 2:
            content[at : at + 16] = content[at : at + 16][::-1] if at + 16 < len(content) else b""
        case 3:
            content[at : at + 8] = draw.bytes(8)
    assert content != file.read_bytes()
    file.write_bytes(content)
    with pytest.raises(ValueError, match="not a whole checkpoint") as caught:
        load_checkpoint(file, RUN)
    assert str(file) in str(caught.value)


def test_nothing_is_unpickled(tmp_path):
    torch.save(STATE, tmp_path / "c")
    with pytest.raises(ValueError, match="not a whole checkpoint"):
        load_checkpoint(tmp_path / "c", RUN)


def test_full_disk_keeps_the_checkpoint_before(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path / "c", RUN)
    checkpoints.save({"step": 1})

    def full(path: Path, content: bytes) -> int:
        with path.open("wb") as file:
            file.write(content[:10])
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left on device"):
        checkpoints.save({"step": 2})
    assert checkpoints.load() == {"step": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["c"]


# -------------------------------------------------------------------------------------------------------------- resume


class Killed(Exception):  # noqa: N818  no error
    """Stands for what ends a process at any moment."""


def interrupted(learner, path: Path, after: int, **options):
    """Train until so many steps are done in this "process", then vanish."""
    checkpoints = Checkpoints(path, RUN, every=0.0)
    taken = -len((checkpoints.load() or {"measured": ()})["measured"])  # the bar is moved on for these first

    def on_step() -> None:
        nonlocal taken
        taken += 1
        if taken == after:
            raise Killed

    return tune(learner, on_step, checkpoints=checkpoints, **options)


def outcome(learner, history):
    return learner.module.state_dict(), vars(history)


@pytest.mark.parametrize(
    ("method", "regime"),
    [
        (MINI, Regime()),
        (CoOp(lr=0.1, epochs=30), Regime()),  # full batches
        (MINI, Regime(precision="bf16")),
        (MINI, Regime(precision="fp16")),  # with the scaler's state
        (MINI, Regime(accumulate=3)),
        (MINI, Regime(patience=3)),
    ],
    ids=lambda value: str(value)[:40],
)
@pytest.mark.parametrize("seed", range(3))
def test_stopped_anywhere_any_number_of_times_gives_the_same_numbers(tmp_path, method, regime, seed):
    def trained(train):
        learner = make_learner(method)
        validate = lambda: float(learner.context.ctx.detach().sum().sin())  # noqa: E731  goes up and down
        return outcome(learner, train(learner, regime=regime, validate=validate))

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


# -------------------------------------------------------------------------------------------------- regime and schedule


def test_accumulated_parts_give_the_update_of_the_whole_batch():
    # 30 pictures in 4 parts of 8, 8, 8, 6: means of parts count by their size. Rows of zeros before the words: without
    # them the student starts as the teacher, and the first cosine is that of rounding.
    whole, parts = (make_learner(CoOp(n_ctx=6), torch.float64) for _ in range(2))
    for _ in range(5):
        values = [
            update(learner, (learner.task.image_features, learner.task.labels), regime)
            for learner, regime in ((whole, Regime()), (parts, Regime(accumulate=4)))
        ]
        for name in ("task", "general", "cosine"):
            assert_close(values[1][name], values[0][name], "trajectory", torch.float32)
    assert_close(parts.context.ctx, whole.context.ctx, "trajectory", torch.float64)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_precision_of_the_step(precision):
    fp32, low = (make_learner(CoOp(lr=1.0, epochs=10)) for _ in range(2))
    expected, history = tune(fp32), tune(low, regime=Regime(precision))
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

    history = tune(learner, regime=Regime(patience=3), validate=validate)
    assert history.validation == [0.2, 0.5, 0.4, 0.5, 0.3]
    assert len(history.task_loss) == 5
    assert torch.equal(learner.context.ctx, states[1])


def test_patience_needs_validation_pictures():
    with pytest.raises(ValueError, match="patience: expected validation pictures"):
        tune(make_learner(), regime=Regime(patience=1))


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


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"precision": "fp8"}, "precision: expected one of fp32, bf16, fp16, got 'fp8'"),
        ({"accumulate": 0}, "accumulate: expected 1 or more, got 0"),
        ({"patience": 0}, "patience: expected 1 or more, got 0"),
        ({"views": -1}, "views: expected 0 or more, got -1"),
    ],
)
def test_regime_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message):
        Regime(**settings)


def test_tensorboard_reads_the_log(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with tensorboard(tmp_path / "log") as log:
        history = tune(make_learner(), log=log)
    events = EventAccumulator(str(tmp_path / "log")).Reload()
    for name, values in (("task", history.task_loss), ("cosine", history.cosine)):
        scalars = events.Scalars(name)
        assert [scalar.step for scalar in scalars] == list(range(STEPS))
        np.testing.assert_allclose([scalar.value for scalar in scalars], values, rtol=1e-6)
    assert {"general", "cross_entropy", "lr"} <= set(events.Tags()["scalars"])
    assert events.Scalars("lr")[0].value == pytest.approx(1e-5)


def test_tensorboard_not_installed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ModuleNotFoundError, match=r"prograd-fast\[log\]"), tensorboard(tmp_path):
        pass
    assert not os.listdir(tmp_path)


GRADIENT_METHODS = [method for method in METHODS if issubclass(method, GradientMethod)]


@pytest.mark.parametrize("method", GRADIENT_METHODS, ids=lambda method: method.name)
def test_every_method_goes_on_with_its_own_numbers(tmp_path, method):
    # stages, memories (trajectories, running averages) and random terms are in the checkpoint too
    short = {"epochs": 4, "batch_size": 16, "lr": 0.05}
    settings = method.of(short | ({"early_epochs": 3, "rank": 2} if hasattr(method, "early_epochs") else {}))
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
