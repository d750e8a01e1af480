"""One run: a method learns from the pictures of a plan, and is tested on its parts."""

import time
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np
from torch import Tensor

from prograd_fast.clip import LoadedClip
from prograd_fast.methods import GradientLearner, GradientMethod, Learner, Method, Task, Teacher
from prograd_fast.training.augmented import AugmentedFeatures, crops_of
from prograd_fast.training.checkpoint import Checkpoints
from prograd_fast.training.evaluate import accuracies, accuracy, evaluate_parts
from prograd_fast.training.evaluation import Evaluation
from prograd_fast.training.features import Features, fingerprint_of, seen_by
from prograd_fast.training.history import History
from prograd_fast.training.loop import Log, tune
from prograd_fast.training.options import AS_PUBLISHED, TrainOptions
from prograd_fast.training.protocol import Part, Plan
from prograd_fast.training.transfer import TransferTest
from prograd_fast.training.views import LEAST


@dataclass(frozen=True)
class Run:
    """The results of a run.

    Attributes:
        method: the method with its settings.
        plan: the pictures.
        learner: the method after training.
        history: losses and cosine of each step, or None for a method that has no steps.
        tests: the evaluation of each part of `plan.tests`, and of each `TransferTest`, by name.
        seconds: wall time of training and of evaluation.
        options: how it was trained.
        left_out: how many pictures each test lost because they are learned from: those of the plan, and of transfer.
    """

    method: Method
    plan: Plan
    learner: Learner
    history: History | None
    tests: dict[str, Evaluation]
    seconds: dict[str, float]
    options: TrainOptions
    left_out: dict[str, int]

    @property
    def accuracy(self) -> dict[str, float]:
        """Top-1 accuracy in [0, 1] of each of the tests, and "harmonic mean" of base and new."""
        return accuracies(self.tests)


def run_method(
    method: Method,
    clip: LoadedClip,
    features: Features,
    plan: Plan,
    on_step: Callable[[], None] = lambda: None,
    on_tested: Callable[[], None] = lambda: None,
    *,
    options: TrainOptions = AS_PUBLISHED,
    cache: Path | None = None,
    checkpoints: Checkpoints | None = None,
    log: Log | None = None,
    transfer: Sequence[TransferTest] = (),
    teacher: Teacher | None = None,
) -> Run:
    """Train and evaluate.

    A method that cannot name new classes is tested on the trained ones only; elsewhere, where a set has just these.

    Args:
        method: what to train.
        clip: the model.
        features: image features of at least `plan.rows`, made by `seen_by(method, clip)`.
        plan: who learns from what.
        on_step: called after each training step.
        on_tested: called after each test picture.
        options: how to train a method that has steps.
        cache: folder of image features that runs share, or None.
        checkpoints: where to go on from and where to keep the state of training, or None.
        log: takes what is measured at each step, or None.
        transfer: tests on other sets, where the method can name their classes; their features are as `features`.
        teacher: another model's view of the pictures of `plan.train`, for a method with `lambda_`; or None.

    Raises:
        ValueError, OSError: see `tune` and `Task`.
    """
    started = time.perf_counter()
    pictures, train = features.pictures, plan.train
    learner = method.start(_task(method, clip, features, plan, teacher, options.views, cache))
    history = None
    if isinstance(learner, GradientLearner):
        with ExitStack() as stack:
            views = None
            if options.views is not None:
                least = LEAST if method.crops is None else method.crops.least
                views = AugmentedFeatures(
                    seen_by(method, clip), pictures, train.rows, plan.seed, options.views, cache, least=least
                )
                stack.enter_context(views)
            history = tune(
                learner,
                on_step,
                options,
                features=None if views is None else views.of_epoch,
                validate=_validation(learner),
                checkpoints=checkpoints,
                log=log,
            )
    trained = time.perf_counter()
    tests = evaluate_parts(learner, features, tests_of(method, plan), on_tested)
    left_out, learned = dict(plan.left_out), train.contents(pictures) if transfer else frozenset()
    for test in transfer:
        if not method.names_new_classes and test.class_names != train.class_names(pictures):
            continue
        part = test.without(learned)
        if len(part.rows):
            tests |= evaluate_parts(learner, test.features, {test.label: part}, on_tested)
        if len(part.rows) < len(test.part.rows):
            left_out[test.label] = len(test.part.rows) - len(part.rows)
    seconds = {"train": trained - started, "evaluate": time.perf_counter() - trained}
    return Run(method, plan, learner, history, tests, seconds, options, left_out)


def accuracy_path(
    method: GradientMethod, clip: LoadedClip, features: Features, plan: Plan, steps: Collection[int]
) -> dict[int, dict[str, float]]:
    """Where training leads: `Run.accuracy` as it would be after some of the steps.

    The method is trained as in `run_method`, so the learning rate falls as in the whole run.

    Args:
        method: what to train; it can name new classes.
        clip: the model.
        features: image features of at least `plan.rows`, made by `clip`.
        plan: who learns from what.
        steps: after how many; 0 is the start, steps beyond the last are left out.

    Returns:
        The accuracies by number of steps, in rising order.
    """
    learner = method.start(_task(method, clip, features, plan))
    counted, path = count(1), dict[int, dict[str, float]]()

    def look(step: int) -> None:
        if step in steps:
            path[step] = accuracies(evaluate_parts(learner, features, plan.tests))

    look(0)
    tune(learner, lambda: look(next(counted)))
    return path


def _task(
    method: Method,
    clip: LoadedClip,
    features: Features,
    plan: Plan,
    teacher: Teacher | None = None,
    views: int | None = None,
    cache: Path | None = None,
) -> Task:
    """The task of a run, on crops where `TrainOptions.views` is given and the method takes several."""
    pictures, train = features.pictures, plan.train
    seen, labels, rows_each = features.of(train.rows), train.labels(pictures).to(clip.device), 1
    if method.crops is not None and views is not None:
        number, n = views or method.crops.number, len(labels)
        tower = seen_by(method, clip)
        crops = crops_of(tower, pictures, train.rows, plan.seed, number, method.crops.least, cache)
        seen, labels = method.crops.merged(crops, labels)
        rows_each = len(labels) // n
    return Task(
        clip.model,
        clip.tokenizer,
        train.class_names(pictures),
        seen,
        labels,
        plan.seed,
        clip.max_memory,
        _validation_pictures(features, plan),
        teacher,
        "" if teacher is None else fingerprint_of(pictures, train.rows),
        rows_each,
    )


def _validation_pictures(features: Features, plan: Plan) -> tuple[Tensor, Tensor] | None:
    """Features and labels of the plan's validation pictures; None if there are none."""
    part = plan.tests.get("validation")
    if part is None:
        return None
    values = features.of(part.rows)
    return values, part.labels(features.pictures).to(values.device)


def _validation(learner: GradientLearner) -> Callable[[], float] | None:
    """Measures the accuracy on the task's validation pictures; None if there are none."""
    task = learner.task
    if task.validation is None:
        return None
    pictures = task.validation
    return lambda: accuracy(learner.scores(task.class_names), *pictures)


def tests_of(method: Method, plan: Plan) -> dict[str, Part]:
    """Select the tests of the plan whose classes the method can name."""
    learned = plan.train.classes
    return {
        name: part
        for name, part in plan.tests.items()
        if method.names_new_classes or np.array_equal(part.classes, learned)
    }
