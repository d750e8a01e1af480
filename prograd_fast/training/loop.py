"""The training loop: mini-batches by epoch, in any precision, from a checkpoint where there is one."""

import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import replace
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prograd_fast.methods import GradientLearner, GradientMethod
from prograd_fast.terminal.interrupts import Held
from prograd_fast.training.checkpoint import Checkpoints, check_alike, check_memory, check_optimizer
from prograd_fast.training.graphed_step import GraphedStep
from prograd_fast.training.history import History, Measurements
from prograd_fast.training.last_good import LastGood
from prograd_fast.training.options import AS_PUBLISHED, TrainOptions
from prograd_fast.training.ranks import Ranks
from prograd_fast.training.update import losses_of, update

CHECK_EVERY = 20  # steps between two looks at the loss; each look waits for the device
LOOK_SECONDS = 1.0  # between two looks at most, however slow the steps are: somebody may watch the bar

Log = Callable[[int, dict[str, float]], None]
"""Takes what was measured at a step, counted from 0, by name."""


def tune(
    learner: GradientLearner,
    on_step: Callable[[], None] = lambda: None,
    options: TrainOptions = AS_PUBLISHED,
    *,
    features: Callable[[int], Tensor] | None = None,
    validate: Callable[[], float] | None = None,
    checkpoints: Checkpoints | None = None,
    log: Log | None = None,
) -> History:
    """Train a learner on the pictures of its task, in place.

    When the task loss or its gradient is not finite, training stops, and what is learned is set back to the last state
    whose loss was finite. Otherwise nothing is read back from the device until the end, but for a look at the losses
    every `CHECK_EVERY` steps and every `LOOK_SECONDS`, and where `checkpoints` or `options.patience` need it.

    A run that goes on from a checkpoint gives the same numbers as one that was never stopped: to the last bit on the
    same machine with the same number of threads. On others the matrix library may add in another order. With
    `checkpoints` SIGINT and SIGTERM wait for the end of the step; then the state is kept, and they go on their way.

    Where several processes have joined a group of `torch.distributed`, all call this with the same arguments and the
    same checkpoint. Either each encodes its part of the class names (`learner.shares_classes`), or each takes its share
    of every batch, and gradients and figures are means over the whole of it. All end with the same numbers. Random
    numbers that a method draws for each picture are others than in a single process where pictures are shared.

    Args:
        learner: The method at work, as `Method.start` gave it.
        on_step: Called after each step, and once for each that a checkpoint brings, for a progress bar.
        options: Precision, accumulation, early stop.
        features: Epoch, from 0, to the (N, D) features of the task's pictures; None: always `task.image_features`.
        validate: Accuracy of the learner on validation pictures; needed for `options.patience`.
        checkpoints: Where to go on from and where to keep the state; None: nowhere.
        log: Called for each step at the next look.

    Returns:
        Losses, training accuracy and cosine of each step.

    Raises:
        OSError: a checkpoint cannot be written; the one before it is still there.
        ValueError: the checkpoint is damaged or another run's, or other processes have gone further; `options.patience`
            without `validate`; `features` beside `task.teacher`, or a method that looks at no teacher.
    """
    if features is not None and learner.task.teacher is not None:
        raise ValueError("teacher: expected no views beside it: its features are of the pictures as they are")
    if options.patience is not None and validate is None:
        raise ValueError("patience: expected validation pictures to stop by, got none")
    training = _Training(learner, options, features, validate, log or (lambda step, values: None))
    history = training.run(on_step, checkpoints)
    learner.training_ended()
    return history


def n_steps(settings: GradientMethod, n_pictures: int) -> int:
    """How many steps `tune` takes on so many pictures, unless it stops early."""
    return sum(settings.stages()) * settings.steps_per_epoch(n_pictures)


def _schedule(learner: GradientLearner) -> torch.optim.lr_scheduler.LRScheduler:
    settings = learner.settings
    if settings.lr > torch.finfo(torch.float32).max:
        raise ValueError(f"lr: expected a rate that float32 holds, got {settings.lr:g}; lower lr")

    def rate_of(group: int) -> Callable[[int], float]:
        return lambda time: learner.rates(time)[group]

    groups = range(len(learner.optimizer.param_groups))
    return torch.optim.lr_scheduler.LambdaLR(learner.optimizer, [rate_of(group) for group in groups])


class _Training:
    """A learner under training: all that a checkpoint has to hold."""

    def __init__(
        self,
        learner: GradientLearner,
        options: TrainOptions,
        features: Callable[[int], Tensor] | None,
        validate: Callable[[], float] | None,
        log: Log,
    ) -> None:
        self.learner, self.options, self.log, self.ranks = learner, options, log, Ranks.now()
        self.features = features or (lambda epoch: learner.task.image_features)
        self.validate = validate if options.patience is not None else None
        self.stage_ends = list(accumulate(learner.settings.stages()))
        self.last_stage = [0, *self.stage_ends][-2]
        self.device = learner.task.device
        self.state = list(learner.module.state_dict().values())  # shares the memory of what is trained
        self.last_good = LastGood(self.state)
        self.best = [tensor.clone() for tensor in self.state]
        self.scaler = self._new_scaler()
        self.schedule = _schedule(learner)
        self.measured = Measurements()
        self.step = GraphedStep(
            self._train_on, lambda: learner.optimizer, [learner.generator], self._renew_scaler, options.graph
        )
        self.logged, self.looked = 0, time.monotonic()
        self.rates: list[float] = []  # of the steps that are not logged yet
        self.validation: list[float] = []
        self.epoch = self.batch = 0

    def run(self, on_step: Callable[[], None], checkpoints: Checkpoints | None) -> History:
        """See `tune`."""
        if checkpoints is not None:
            self._go_on_from(checkpoints)
        # one without the checkpoint of the others would mix its gradients, of another state, with theirs
        self.ranks.check_same({"the number of steps that were taken before": len(self.measured)})
        for _ in range(len(self.measured)):
            on_step()
        signals, batches = Held(), None
        # of several ranks none waits for the end of a step: the others may have ended, and it would wait for them
        with nullcontext() if checkpoints is None or self.ranks.size > 1 else signals:
            while not self._is_done():
                batches = signals.wait(self._batches)
                if batches is None:  # stopped while it waited for pictures
                    self._save_if_due(checkpoints, signals)
                    continue
                while self.batch < len(batches):
                    self._save_if_due(checkpoints, signals)
                    self._step(batches[self.batch])
                    self.batch += 1
                    on_step()
                    if self._look_is_due() and not self._log_and_check():
                        return self._stopped()
                self._end_epoch()
                if self.validate is not None and self.epoch > self.last_stage:
                    self._end_validation(self.validate())
            if signals.came:
                self._save_if_due(checkpoints, signals)
        with torch.no_grad():  # the last state has no loss yet
            batches = batches or self._batches()
            healthy = self._log_and_check() and bool(losses_of(self.learner, batches[-1], self.options).task.isfinite())
        if not healthy:
            return self._stopped()
        if checkpoints is not None and checkpoints.last:
            with suppress(OSError):  # saving the run will tell
                checkpoints.save(self._state())
        if self.validate is not None:
            self._set_back_to(self.best)
        return self._history(True)

    def _batches(self) -> list[tuple[Tensor, Tensor]]:
        """This epoch's: all pictures at once, or each once in random order; the last batch may be smaller."""
        features, labels = self.learner.rows(self.features(self.epoch)), self.learner.task.labels
        size = self.learner.settings.batch_size
        if size is None or size >= len(labels):
            return [(features, labels)]
        # the order depends on seed and epoch alone, so that a run that goes on finds it again
        order = np.random.RandomState([self.learner.task.seed, self.epoch]).permutation(len(labels))
        rows = torch.from_numpy(order).to(self.device)
        # all rows at once: whole rows are copied, which takes half as long as batch by batch with features[rows]
        both = (tensor.index_select(0, rows).split(size) for tensor in (features, labels))
        return list(zip(*both, strict=True))

    def _step(self, batch: tuple[Tensor, Tensor]) -> None:
        self.rates.append(self.learner.optimizer.param_groups[0]["lr"])
        self.measured.add(self.step(*batch))
        if self.learner.settings.schedule_by == "step":
            self.schedule.step()

    def _train_on(self, features: Tensor, labels: Tensor) -> Tensor:
        """Train on a batch; what was measured, as `Measurements.row` has it. Writes where the last step wrote."""
        self.last_good.step_begins()
        whole = (features, labels, None)
        *batch, weight = whole if self.learner.shares_classes else self.ranks.share(features, labels)
        values = update(self.learner, (batch[0], batch[1]), self.options, self.scaler, weight)
        row = self.ranks.mean(self.measured.row(values), weight)
        # A gradient that is not finite makes the next loss NaN: the loss tells both.
        self.last_good.step_ended(row[self.measured.columns.index("task")].isfinite())
        return row

    def _new_scaler(self) -> torch.amp.GradScaler:
        return torch.amp.GradScaler(self.device.type, enabled=self.options.precision == "fp16")

    def _renew_scaler(self) -> None:
        """Forget that the gradients of a step were unscaled whose update never came."""
        state = self.scaler.state_dict()
        self.scaler = self._new_scaler()
        self.scaler.load_state_dict(state)

    def _look_is_due(self) -> bool:
        by_time = self.ranks.size == 1 and time.monotonic() - self.looked >= LOOK_SECONDS  # clocks differ
        return len(self.measured) % CHECK_EVERY == 0 or by_time

    def _log_and_check(self) -> bool:
        """Whether all losses were finite until now; also hands them to the log."""
        self.looked = time.monotonic()
        for row, rate in zip(self.measured.since(self.logged).tolist(), self.rates, strict=True):
            self.log(self.logged, dict(zip(self.measured.columns, row, strict=True)) | {"lr": rate})
            self.logged += 1
        self.rates.clear()
        return bool(self.last_good.healthy)

    def _end_epoch(self) -> None:
        if self.learner.settings.schedule_by == "epoch":
            self.schedule.step()
        self.epoch, self.batch = self.epoch + 1, 0
        self.learner.epoch_ended(self.epoch)
        if self.epoch in self.stage_ends[:-1]:
            self.schedule = _schedule(self.learner)

    def _end_validation(self, accuracy: float) -> None:
        """Note an accuracy on the validation pictures, and keep the best state."""
        if accuracy > max(self.validation, default=-1.0):
            self.best = [tensor.clone() for tensor in self.state]
        self.validation.append(accuracy)

    def _is_done(self) -> bool:
        """Whether all epochs are over, or the validation accuracy has not risen for `patience` of them."""
        if self.options.patience is None or not self.validation:
            return self.epoch >= self.stage_ends[-1]
        epochs_since = len(self.validation) - 1 - self.validation.index(max(self.validation))
        return self.epoch >= self.stage_ends[-1] or epochs_since >= self.options.patience

    def _stopped(self) -> History:
        self._set_back_to(self.last_good.tensors)
        return self._history(False)

    def _history(self, completed: bool) -> History:
        history = self.measured.history(completed, self.validation)
        return replace(history, replayed=self.step.replayed, not_replayed=self.step.reason)

    def _set_back_to(self, state: list[Tensor]) -> None:
        for tensor, value in zip(self.state, state, strict=True):
            tensor.copy_(value)

    # ---- checkpoints

    def _save_if_due(self, checkpoints: Checkpoints | None, signals: Held) -> None:
        """Between two steps: keep the state if it is time or if the run is interrupted, and then end."""
        if checkpoints is not None and (checkpoints.due or signals.came) and self._log_and_check():
            checkpoints.save(self._state())
        signals.deliver()

    def _state(self) -> dict[str, Any]:
        learner = self.learner
        cuda = self.device.type == "cuda"
        return {
            "module": learner.module.state_dict(),
            "learner": learner.state_dict(),
            "optimizer": learner.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "random": [torch.get_rng_state(), torch.cuda.get_rng_state(self.device) if cuda else None],
            "epoch": self.epoch,
            "batch": self.batch,
            "last_good": self.last_good.tensors,
            "best": self.best,
            "columns": self.measured.columns,
            "measured": self.measured.since(0),
            "validation": self.validation,
        }

    def _go_on_from(self, checkpoints: Checkpoints) -> None:
        state = checkpoints.load()
        if state is None:
            return
        try:
            self._restore(state)
        except Exception as error:  # a file from anybody can be wrong in any way
            message = " ".join(str(error).split())
            raise ValueError(
                f"{checkpoints.path} does not fit this run ({type(error).__name__}: {message}); delete it to begin anew"
            ) from error

    def _restore(self, state: dict[str, Any]) -> None:
        learner, own = self.learner, self._state()
        # what grows is looked at below; and a schedule of another release of torch may have fewer entries
        own["schedule"] = {name: value for name, value in own["schedule"].items() if name in state["schedule"]}
        growing = ("learner", "optimizer", "random", "columns", "measured", "validation")
        check_alike(state, own | {name: state[name] for name in growing}, "state")
        cpu, cuda = state["random"]
        columns, measured, validation = state["columns"], state["measured"], state["validation"]
        check_alike(columns, ["task"] * len(columns), "columns")
        if len(measured) and not columns:
            raise ValueError(f"{len(measured)} steps of nothing")
        check_alike(measured, torch.empty(len(measured), len(columns)), "measured")
        check_alike(validation, [0.0] * len(validation), "validation")
        epochs, most_batches = self.stage_ends[-1], len(self.learner.task.labels)
        if state["epoch"] not in range(epochs + 1) or state["batch"] not in range(most_batches):
            raise ValueError(f"epoch {state['epoch']}, batch {state['batch']}")
        check_memory(state["learner"], own["learner"])

        learner.module.load_state_dict(state["module"])
        learner.load_state_dict(state["learner"])
        self.schedule = _schedule(learner)  # a later stage has an optimizer of its own
        check_optimizer(state["optimizer"], learner.optimizer)
        learner.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.scaler.load_state_dict(state["scaler"])
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state(cuda, self.device)
        self.epoch, self.batch = state["epoch"], state["batch"]
        self.last_good.restore(state["last_good"])
        self.best = [tensor.to(self.device) for tensor in state["best"]]
        self.measured = Measurements(columns, measured.to(self.device))
        self.logged = len(self.measured)
        self.validation = validation
