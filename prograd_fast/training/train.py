"""Training a method on a picture set from beginning to end: what `prograd-fast train` does."""

import time
from collections.abc import Sequence
from pathlib import Path

from prograd_fast.clip import LoadedClip, TextTower
from prograd_fast.clip.tokens import TokenizedTexts, readable_class_names
from prograd_fast.data import PictureSet
from prograd_fast.methods import GradientMethod, Learner, Method, Task, ZeroShot, check_takes_teacher
from prograd_fast.training.checkpoint import Checkpoints
from prograd_fast.training.features import encode_pictures, seen_by, teacher_of
from prograd_fast.training.loop import Log, n_steps
from prograd_fast.training.options import AS_PUBLISHED, TrainOptions
from prograd_fast.training.progress import Bar, Track
from prograd_fast.training.protocol import Plan
from prograd_fast.training.ranks import Ranks
from prograd_fast.training.record import Record, learned_from, plan_facts, run_facts, run_record, setup_record
from prograd_fast.training.run import run_method, tests_of


def train_method(
    method: Method,
    clip: LoadedClip,
    pictures: PictureSet,
    plan: Plan,
    track: Track,
    cache: Path | None = None,
    options: TrainOptions = AS_PUBLISHED,
    checkpoint: Path | None = None,
    log: Log | None = None,
    teacher: LoadedClip | None = None,
) -> tuple[Record, Learner]:
    """Train a method and test it, beside the untouched model.

    Args:
        method: what to train.
        clip: the model.
        pictures: the set.
        plan: who learns from what.
        track: opens progress bars; the one of training shows loss and training accuracy.
        cache: folder of image features that runs share, or None.
        options: how to train.
        checkpoint: file to go on from, if it is there, and to keep the state of training in; or None.
        log: takes what is measured at each step, or None.
        teacher: another model that a method with `lambda_` keeps to, on the same device; None: the untouched `clip`.

    Returns:
        The run record (`setup_record`, `run_record`, "zero_shot_accuracy", `learned_from`, under "details" the
        `Evaluation` of each test as JSON, and under "facts" `run_facts`), and the trained method.

    Raises:
        ValueError: a picture cannot be read, or class names and context do not fit into the text tower; a teacher for a
            method without `lambda_`, or beside augmented views.
    """
    if teacher is not None:
        check_teacher([method], options)
    check_start(method, clip, pictures.class_names)
    started = time.perf_counter()
    features = encode_pictures(
        seen_by(method, clip), pictures, plan.rows, track("looking at the pictures", len(plan.rows)), cache
    )
    teaching = None
    if teacher is not None:
        rows = plan.train.rows
        teaching = teacher_of(teacher, pictures, rows, track("looking through the teacher", len(rows)), cache)
    encoded = time.perf_counter() - started
    steps = n_steps(method, len(plan.train.rows)) if isinstance(method, GradientMethod) else 0
    on_step = track(f"training {method.name}", steps)
    baseline = untouched(method)
    n_tested = sum(len(part.rows) for one in (method, baseline) for part in tests_of(one, plan).values())
    on_tested = track("testing", n_tested)
    facts = run_facts(method, clip, plan_facts(pictures, plan), options, teacher)
    Ranks.now().check_same(facts)
    trained = run_method(
        method,
        clip,
        features,
        plan,
        on_step,
        on_tested,
        options=options,
        cache=cache,
        checkpoints=None if checkpoint is None else Checkpoints(checkpoint, facts, last=True),
        log=_with_notes(on_step, log),
        teacher=teaching,
    )
    projected = encode_pictures(clip, pictures, plan.rows, cache=cache) if method.before_projection else features
    zero_shot = run_method(baseline, clip, projected, plan, on_tested=on_tested)
    record = {
        **setup_record(clip, pictures, plan.rows),
        **run_record(trained, pictures),
        "zero_shot_accuracy": zero_shot.accuracy,
        "seconds": {"encode": encoded, **trained.seconds},
        "learned_from": learned_from(pictures, plan),
        "details": {name: evaluation.to_record() for name, evaluation in trained.tests.items()},
        "facts": facts,
    }
    return record, trained.learner


def check_start(method: Method, clip: LoadedClip, class_names: Sequence[str]) -> None:
    """Refuse what does not fit the model before the pictures are looked at, which takes longest.

    Raises:
        ValueError: the model has not what the method trains, or settings and class names, in the prompts of the
            untouched model too, do not fit into its text tower.
    """
    method.start(Task.without_pictures(clip.model, clip.tokenizer, class_names))
    tower, names = TextTower(clip.model), readable_class_names(class_names)
    for template in untouched(method).templates:
        TokenizedTexts.of(clip.tokenizer, tower, [template.replace("{}", name) for name in names])


def check_teacher(methods: Sequence[Method], options: TrainOptions) -> None:
    """ValueError where another model as the teacher would teach none of the methods, or sees not what they see."""
    check_takes_teacher(*methods)
    if options.views is not None:
        raise ValueError("teacher: expected no augmented views beside it: it sees the pictures as they are")


def untouched(method: Method) -> ZeroShot:
    """Zero-shot with the prompts of the method's own teacher."""
    return ZeroShot() if method.teacher_templates is None else ZeroShot(method.teacher_templates)


def _with_notes(bar: Bar, log: Log | None) -> Log:
    """A log that also shows loss and training accuracy behind the bar."""

    def both(step: int, values: dict[str, float]) -> None:
        accuracy = f", accuracy {100 * values['accuracy']:.0f} %" if "accuracy" in values else ""
        bar.note(f"loss {values['task']:.3f}{accuracy}")
        if log is not None:
            log(step, values)

    return both
