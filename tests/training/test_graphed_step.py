"""Steps that replay a recorded one give the numbers of steps that do not, to the last bit.

No GPU is needed: `tests.training.recorded` plays the part of a CUDA graph. It keeps the arguments of each operator as
they were, runs nothing while it records, and refuses to read a number back, as CUDA does.
"""

from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import _get_current_dispatch_mode

from prograd_fast.methods import CoOp, ProGradCoOp, PromptSRC
from prograd_fast.methods.prompt_tuning import PromptTuningLearner
from prograd_fast.ops.registry import SHORTCUTS
from prograd_fast.optim import ProGradSGD, rules
from prograd_fast.optim.conflict import ConflictLog
from prograd_fast.training import TrainOptions, graphed_step, tune
from prograd_fast.training.checkpoint import Checkpoints
from prograd_fast.training.graphed_step import WARM_UP, GraphedStep, record
from prograd_fast.training.options import AS_PUBLISHED
from tests.methods.support import make_task
from tests.methods.test_every_method import FORMS, TRAINED, small
from tests.training.recorded import Recorder, record_on_cpu
from tests.training.support import learner_of, make_learner


@pytest.fixture
def graphs(monkeypatch):
    """Steps are recorded on the CPU. What goes past the dispatcher there cannot be, so it does not."""
    monkeypatch.setattr(graphed_step, "record", record_on_cpu)
    monkeypatch.setattr(
        ConflictLog, "_capturing", property(lambda log: isinstance(_get_current_dispatch_mode(), Recorder))
    )
    asked = graphed_step._why_not
    monkeypatch.setattr(graphed_step, "_why_not", lambda o: None if "GPU" in (asked(o) or "") else asked(o))
    for name in ("dual_loss", "projected", "project_adamw_", "project_sgd_", "adamw"):
        monkeypatch.delitem(SHORTCUTS, name, raising=False)


def _fused_sgd(learner, parameters, **options):
    """As on a GPU: the update after clipping is PyTorch's, and only its fused form takes the rate from the device."""
    settings = learner.settings
    rates = {"lr": settings.lr, "momentum": settings.momentum, "weight_decay": settings.weight_decay}
    return ProGradSGD(parameters, **rates, **options, fused=True)


def trained(method, options=AS_PUBLISHED):
    learner = method.start(make_task(method=method))
    return tune(learner, options=options), learner


def assert_same(run, eager):
    (history, learner), (expected, other) = run, eager
    same = replace(history, replayed=expected.replayed, not_replayed=expected.not_replayed)
    assert str(same) == str(expected)  # every digit; NaN is not equal to itself
    states = learner.module.state_dict(), other.module.state_dict()
    assert states[0].keys() == states[1].keys()
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name


@pytest.mark.parametrize("name", [*TRAINED, *FORMS])
def test_every_method_gives_the_same_numbers(name, graphs):
    # more steps than warm up in each stage; a rate that changes at each epoch, and a last batch that is smaller
    epochs = {"epochs": 6, "warmup_epochs": 2} | ({"early_epochs": 5} if "subpt" in name else {})
    epochs |= {"anchor_epochs": 5} if "anchoropt" in name.lower() else {}
    method = small(name, **epochs, batch_size=13)
    run, eager = trained(method), trained(method, TrainOptions(graph=False))
    assert_same(run, eager)
    assert run[0].not_replayed is None
    whole, rest = divmod(len(make_task().labels), 13)
    assert rest, "the last batch of an epoch must be smaller"
    stages = method.stages()
    assert run[0].replayed == sum(whole * epochs for epochs in stages) - WARM_UP * len(stages)
    assert (eager[0].replayed, eager[0].not_replayed) == (0, "not asked for")


@pytest.mark.parametrize(
    "options",
    [
        TrainOptions("bf16"),
        TrainOptions("fp16"),  # begins with a scale that overflows, and a GradScaler's own state
        TrainOptions(accumulate=3),
        TrainOptions("fp16", accumulate=2),
    ],
    ids=str,
)
@pytest.mark.parametrize("clip", [None, 0.1])
def test_every_option_gives_the_same_numbers(options, clip, graphs, monkeypatch):
    method = ProGradCoOp(epochs=12, lr=0.5, clip_grad_norm=clip, weight_decay=0.01)
    monkeypatch.setattr(PromptTuningLearner, "new_sgd", _fused_sgd)
    run, eager = trained(method, options), trained(method, replace(options, graph=False))
    assert_same(run, eager)
    assert (run[0].replayed, run[0].not_replayed) == (12 - WARM_UP, None)


def test_a_hundred_steps(graphs):
    method = ProGradCoOp(epochs=100, n_ctx=6)
    run, eager = trained(method), trained(method, TrainOptions(graph=False))
    assert_same(run, eager)
    assert run[0].replayed == 97
    for counted, expected in zip(run[1].optimizer.conflict, eager[1].optimizer.conflict, strict=True):
        assert torch.equal(counted, expected)  # every replay has counted its step, and those before are counted once


@pytest.mark.parametrize("scope", ["tensor", "global"])
@pytest.mark.parametrize(
    "rule", [rules.GradVac(0.3), rules.Bloop(0.5, lambda_=0.5), rules.PCGrad(), rules.CAGrad(0.4)], ids=str
)
def test_a_rule_with_a_memory(rule, scope, graphs):
    """A replay must find the memory where the recorded step left it."""

    def run(graph):
        learner = make_learner(CoOp(epochs=10, n_ctx=6, lambda_=1.0))
        learner.optimizer = ProGradSGD(learner.module.parameters(), lr=0.1, momentum=0.9, rule=rule, scope=scope)
        return tune(learner, options=TrainOptions(graph=graph)), learner

    replayed, eager = run(None), run(False)
    assert_same(replayed, eager)
    assert replayed[0].replayed == 10 - WARM_UP


def _freeze(optimizer):
    optimizer.param_groups[0]["params"][1].requires_grad_(False)


def _load(optimizer):
    state = optimizer.state_dict()
    for buffers in state["state"].values():
        buffers["momentum_buffer"] = 2 * buffers["momentum_buffer"]
    optimizer.load_state_dict(state)


CHANGES = {
    "weight decay": lambda optimizer: optimizer.param_groups[0].update(weight_decay=0.5),
    "momentum": lambda optimizer: optimizer.param_groups[0].update(momentum=0.5),
    "lambda": lambda optimizer: optimizer.param_groups[0].update(lambda_=0.5),
    "noise floor": lambda optimizer: setattr(optimizer, "noise_floor", 10.0),
    "no momentum yet": lambda optimizer: optimizer.state.clear(),
    "another state": _load,
    "its own state": lambda optimizer: optimizer.load_state_dict(optimizer.state_dict()),
    "a parameter that is frozen": _freeze,
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_between_two_steps_is_seen(change, graphs):
    """A recorded step has numbers and addresses from the time when it was recorded."""

    def run(graph):
        learner, taken = make_learner(PromptSRC(epochs=13, n_ctx=6, lambda_=1.0, warmup_epochs=2)), []

        def on_step():
            taken.append(1)
            if len(taken) == WARM_UP + 3:
                CHANGES[change](learner.optimizer)

        return tune(learner, on_step, TrainOptions(graph=graph)), learner

    replayed, eager = run(None), run(False)
    assert_same(replayed, eager)
    assert replayed[0].replayed == 13 - 2 * WARM_UP


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_rate_that_is_a_tensor_stays_one(dtype, graphs):
    def run(graph):
        learner = make_learner(CoOp(epochs=10, n_ctx=6, warmup_epochs=5))
        rate = torch.tensor(0.1, dtype=dtype)
        learner.optimizer = ProGradSGD(learner.module.parameters(), lr=rate, momentum=0.9)
        history = tune(learner, options=TrainOptions(graph=graph))
        assert learner.optimizer.param_groups[0]["lr"] is rate
        return history, learner

    replayed, eager = run(None), run(False)
    assert_same(replayed, eager)
    assert replayed[0].replayed == 10 - WARM_UP


def test_a_loss_that_is_not_finite_ends_the_training(graphs, clip, shapes):
    """The last good state is kept by the replays too: the rate grows until the context overflows."""
    method = ProGradCoOp(epochs=30, warmup_epochs=6, warmup_lr=0.01, lr=3e38)
    learner, other = (learner_of(method, clip, shapes) for _ in range(2))
    run, eager = (tune(learner), learner), (tune(other, options=TrainOptions(graph=False)), other)
    assert not run[0].completed
    assert run[0].replayed > 0
    assert_same(run, eager)


def test_a_run_goes_on_from_a_checkpoint(graphs, tmp_path):
    method = ProGradCoOp(epochs=12, batch_size=13)

    steps = []

    def stop():
        steps.append(1)
        if len(steps) == 11:
            raise KeyboardInterrupt

    path = tmp_path / "checkpoint"
    with pytest.raises(KeyboardInterrupt):
        tune(method.start(make_task()), stop, checkpoints=Checkpoints(path, {}, every=0.0))
    learner = method.start(make_task())
    history = tune(learner, checkpoints=Checkpoints(path, {}, every=0.0))
    assert history.replayed > 0
    assert_same((history, learner), trained(method, TrainOptions(graph=False)))


def test_what_reads_a_number_back_is_not_recorded(graphs):
    class Reads(CoOp):
        def terms(self, learner):
            return {"reads": lambda step: step.logits.sum() * (0 if step.logits.max().item() > 0 else 1)}

    learner = Reads(epochs=8).start(make_task())
    history = tune(learner)
    assert history.completed
    assert history.replayed == 0
    assert history.not_replayed == (
        "the step cannot be recorded: operation not permitted when stream is capturing: aten::_local_scalar_dense"
    )
    assert_same((history, learner), trained(Reads(epochs=8), TrainOptions(graph=False)))


def test_a_step_that_cannot_be_recorded_leaves_nothing_half_done(graphs):
    """Clipping without a fused update reads the rate: that comes after the scaler has unscaled the gradients."""
    method = ProGradCoOp(epochs=8, clip_grad_norm=0.1)
    run, eager = (trained(method, TrainOptions("fp16", graph=graph)) for graph in (None, False))
    assert "cannot be recorded" in run[0].not_replayed
    assert_same(run, eager)


def test_any_error_of_a_recording_is_a_reason(graphs):
    class Prints(CoOp):
        def terms(self, learner):
            def term(step):
                if torch.is_tensor(learner.optimizer.param_groups[0]["lr"]):
                    raise TypeError("expected a number\nas rate")
                return step.logits.sum() * 0

            return {"prints": term}

    history = tune(Prints(epochs=8).start(make_task()))
    assert history.completed
    assert history.not_replayed == "the step cannot be recorded: expected a number"


def test_generators_draw_again_after_a_recording_that_failed(monkeypatch):
    """CUDA's, before PyTorch gave each capture a state of its own, refuse to: a capture that fails is never ended."""

    class OfCuda:
        def __init__(self):
            self.state = {"capturing": False, "offset": 8}

        def clone_state(self):
            copy = OfCuda()
            copy.state["offset"] = self.state["offset"]
            return copy

        def graphsafe_set_state(self, other):
            self.state = other.state

    def capture(graph):
        for generator in (default, own):
            generator.state["capturing"] = True
        return nullcontext()

    def fails():
        raise RuntimeError("operation not permitted when stream is capturing")

    default, own = OfCuda(), OfCuda()
    monkeypatch.setattr(torch.cuda, "default_generators", (default,))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: SimpleNamespace(register_generator_state=lambda g: None))
    monkeypatch.setattr(torch.cuda, "graph", capture)
    with pytest.raises(RuntimeError, match="not permitted"):
        record(fails, [own])
    assert default.state == own.state == {"capturing": False, "offset": 8}
    assert hasattr(torch.Generator, "clone_state")
    assert hasattr(torch.Generator, "graphsafe_set_state")


def test_hooks_of_the_step_are_called_at_every_step(graphs):
    learner, called = make_learner(CoOp(epochs=8)), []
    learner.optimizer.register_step_post_hook(lambda *_: called.append(1))
    history = tune(learner)
    assert len(called) == 8
    assert history.not_replayed == "the optimizer has hooks of its step, which a replay does not call"


def test_on_a_cpu_the_reason_is_told():
    learner = make_learner(CoOp(epochs=4))
    assert tune(learner).not_replayed == "CUDA graphs need a GPU, and this runs on cpu"


def test_the_batch_is_copied_and_the_figures_are_the_callers(graphs):
    """Features of a new epoch lie elsewhere; a row of figures is not overwritten by the next step."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.5)

    def step(features, labels):
        return torch.stack([features.sum(), labels.sum().float()]) * optimizer.param_groups[0]["lr"]

    graphed = GraphedStep(step, lambda: optimizer, [], lambda: None)
    rows = []
    for i in range(WARM_UP + 3):
        optimizer.param_groups[0]["lr"] = 0.5 + i
        rows.append(graphed(torch.full((2, 3), float(i)), torch.tensor([i, i])))
    assert graphed.replayed == 3
    assert [row.tolist() for row in rows] == [[6.0 * i * (0.5 + i), 2.0 * i * (0.5 + i)] for i in range(WARM_UP + 3)]
    assert optimizer.param_groups[0]["lr"] == 0.5 + WARM_UP + 2


def test_the_most_frequent_shape_is_the_one_that_is_recorded(graphs):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.5)
    graphed = GraphedStep(lambda x, y: x.sum()[None], lambda: optimizer, [], lambda: None)
    for _ in range(6):
        for rows in (4, 4, 3):
            assert graphed(torch.ones(rows, 2), torch.ones(rows)).item() == 2 * rows
    assert graphed.replayed == 12 - WARM_UP
