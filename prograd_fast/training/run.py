"""One run: a method learns from its shots and is examined on every part of the plan."""

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from prograd_fast.clip import LoadedClip
from prograd_fast.data import PictureSet
from prograd_fast.methods import GradientLearner, Learner, Method, Scores, Task
from prograd_fast.training.augmented import AugmentedFeatures
from prograd_fast.training.checkpoint import Checkpoints
from prograd_fast.training.evaluate import accuracy, harmonic_mean
from prograd_fast.training.features import Features
from prograd_fast.training.history import History
from prograd_fast.training.loop import AS_PUBLISHED, Log, Regime, tune
from prograd_fast.training.protocol import Part, Plan


@dataclass(frozen=True)
class Run:
    """What came of a run.

    Attributes:
        method: the method with its settings.
        plan: the pictures.
        learner: the method after training.
        history: losses and cosine of each step, or None for a method that has no steps.
        accuracy: top-1 accuracy in [0, 1] for each part of `plan.tests`, and "harmonic mean" of base and new.
        seconds: wall time of training and of evaluation.
        regime: how it was trained.
    """

    method: Method
    plan: Plan
    learner: Learner
    history: History | None
    accuracy: dict[str, float]
    seconds: dict[str, float]
    regime: Regime


@dataclass(frozen=True)
class Elsewhere:
    """Another set to be tested on, among its own classes: cross-dataset transfer, or another domain.

    Attributes:
        pictures: the set; its name is the test's.
        features: image features of `part.rows`.
        part: its test pictures and all its classes.
    """

    pictures: PictureSet
    features: Features
    part: Part


def run_method(
    method: Method,
    clip: LoadedClip,
    pictures: PictureSet,
    features: Features,
    plan: Plan,
    on_step: Callable[[], None] = lambda: None,
    on_tested: Callable[[], None] = lambda: None,
    *,
    regime: Regime = AS_PUBLISHED,
    cache: Path | None = None,
    checkpoints: Checkpoints | None = None,
    log: Log | None = None,
    elsewhere: Sequence[Elsewhere] = (),
) -> Run:
    """Train and evaluate.

    A method that cannot name new classes is examined on the trained ones only.

    Args:
        method: what to train.
        clip: the model.
        pictures: the set.
        features: image features of at least `plan.rows`, made by `clip`.
        plan: who learns from what.
        on_step: called after each training step.
        on_tested: called after each test picture.
        regime: how to train a method that has steps.
        cache: folder of image features that runs share, or None.
        checkpoints: where to go on from and where to keep the state of training, or None.
        log: takes what is measured at each step, or None.
        elsewhere: other sets to test a method on that can name their classes.

    Raises:
        ValueError, OSError: see `tune`.
    """
    started = time.perf_counter()
    task = Task(
        clip.model,
        clip.tokenizer,
        plan.train.class_names(pictures),
        features.of(plan.train.rows),
        plan.train.labels(pictures).to(clip.device),
        plan.seed,
        clip.max_memory,
    )
    learner = method.start(task)
    history = None
    if isinstance(learner, GradientLearner):
        validate = _validation(learner, clip, pictures, features, plan)
        with ExitStack() as stack:
            views = None
            if regime.views is not None:
                rows, seed = plan.train.rows, plan.seed
                views = AugmentedFeatures(clip, pictures, rows, seed, stored=regime.views, cache=cache)
                stack.enter_context(views)
            history = tune(
                learner,
                on_step,
                regime,
                features=None if views is None else views.of_epoch,
                validate=validate,
                checkpoints=checkpoints,
                log=log,
            )
    trained = time.perf_counter()
    measured = examine(learner, clip, pictures, features, tests_of(method, plan), on_tested)
    for other in elsewhere if method.names_new_classes else ():
        name = other.pictures.name
        measured |= examine(learner, clip, other.pictures, other.features, {name: other.part}, on_tested)
    seconds = {"train": trained - started, "evaluate": time.perf_counter() - trained}
    return Run(method, plan, learner, history, measured, seconds, regime)


def _validation(
    learner: Learner, clip: LoadedClip, pictures: PictureSet, features: Features, plan: Plan
) -> Callable[[], float] | None:
    """Accuracy on the plan's validation pictures, None if there are none."""
    part = plan.tests.get("validation")
    if part is None:
        return None
    return lambda: examine(learner, clip, pictures, features, {"validation": part})["validation"]


def examine(
    learner: Learner,
    clip: LoadedClip,
    pictures: PictureSet,
    features: Features,
    tests: dict[str, Part],
    on_tested: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """Top-1 accuracy in [0, 1] on each part, and "harmonic mean" where there are "base" and "new".

    Each class list is encoded once, however many parts use it.
    """
    measured: dict[str, float] = {}
    scores: dict[tuple[str, ...], Scores] = {}
    for name, part in tests.items():
        class_names = part.class_names(pictures)
        if class_names not in scores:
            scores[class_names] = learner.scores(class_names)
        labels = part.labels(pictures).to(clip.device)
        measured[name] = accuracy(scores[class_names], features.of(part.rows), labels, on_tested)
    if {"base", "new"} <= measured.keys():
        measured["harmonic mean"] = harmonic_mean(measured["base"], measured["new"])
    return measured


def tests_of(method: Method, plan: Plan) -> dict[str, Part]:
    """Those of `plan.tests` whose classes the method can name."""
    learned = plan.train.classes
    return {
        name: part
        for name, part in plan.tests.items()
        if method.names_new_classes or np.array_equal(part.classes, learned)
    }
