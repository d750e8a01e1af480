"""The job: train a method, keep what it learned in a folder, use it again."""

import hashlib
import logging
import os
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from prograd_fast.clip import LoadedClip, load_learned
from prograd_fast.clip.tokens import readable_class_names
from prograd_fast.data import PictureSet
from prograd_fast.inputs import check_kinds, read_json
from prograd_fast.methods import GradientMethod, Learner, Method, PromptTuning, Task, ZeroShot, method_named
from prograd_fast.tensor_files import tensors_digest
from prograd_fast.training.checkpoint import Checkpoints, differing
from prograd_fast.training.features import encode_pictures
from prograd_fast.training.loop import AS_PUBLISHED, Log, Regime, n_steps
from prograd_fast.training.protocol import Plan, class_groups, test_parts
from prograd_fast.training.record import Record, record_digest, run_record, setup_record, write_json
from prograd_fast.training.run import examine, run_method, tests_of

RUN_FILES = ("record.json", "prompt.safetensors")
CHECKPOINT = "checkpoint.safetensors"  # in the folder of a run that is not finished
_LEARNED = "learned"  # entry of a record: the digest of what was learned
_NEW = ".new-*.prompt.safetensors"  # what was learned, while the record is being written

_LOG = logging.getLogger("prograd_fast")

Learned = dict[str, Tensor]  # what a method learned, by name

Track = Callable[[str, int], Callable[[], None]]
"""Opens a progress bar: its label and length in, the function that moves it on by one out."""


def train_method(
    method: Method,
    clip: LoadedClip,
    pictures: PictureSet,
    plan: Plan,
    track: Track,
    cache: Path | None = None,
    regime: Regime = AS_PUBLISHED,
    checkpoint: Path | None = None,
    log: Log | None = None,
) -> tuple[Record, Learner]:
    """Train a method and test it, beside the untouched model.

    Args:
        method: what to train.
        clip: the model.
        pictures: the set.
        plan: who learns from what.
        track: opens progress bars.
        cache: folder of image features that runs share, or None.
        regime: how to train.
        checkpoint: file to go on from, if it is there, and to keep the state of training in; or None.
        log: takes what is measured at each step, or None.

    Returns:
        The run record (`setup_record`, `run_record`, "zero_shot_accuracy" and under "facts" `run_facts`), and the
        trained method.

    Raises:
        ValueError: a picture cannot be read, or class names and context do not fit into the text tower.
    """
    # Looking at the pictures takes longest: settings and class names that do not fit the model are refused before.
    method.start(Task.without_pictures(clip.model, clip.tokenizer, pictures.class_names))
    started = time.perf_counter()
    features = encode_pictures(clip, pictures, plan.rows, track("looking at the pictures", len(plan.rows)), cache)
    encoded = time.perf_counter() - started
    steps = n_steps(method, len(plan.train.rows)) if isinstance(method, GradientMethod) else 0
    on_step = track(f"training {method.name}", steps)
    untouched = _untouched(method)
    n_tested = sum(len(part.rows) for one in (method, untouched) for part in tests_of(one, plan).values())
    on_tested = track("testing", n_tested)
    facts = run_facts(method, clip, pictures, plan, regime)
    checkpoints = None if checkpoint is None else Checkpoints(checkpoint, facts, last=True)
    tuned = run_method(
        method,
        clip,
        pictures,
        features,
        plan,
        on_step,
        on_tested,
        regime=regime,
        cache=cache,
        checkpoints=checkpoints,
        log=log,
    )
    zero_shot = run_method(untouched, clip, pictures, features, plan, on_tested=on_tested)
    record = {**setup_record(clip, pictures), **run_record(tuned, pictures), "zero_shot_accuracy": zero_shot.accuracy}
    record["seconds"] = {"encode": encoded, **tuned.seconds}
    record["facts"] = facts
    return record, tuned.learner


def run_facts(method: Method, clip: LoadedClip, pictures: PictureSet, plan: Plan, regime: Regime) -> Record:
    """What decides the numbers of a run, apart from versions and machine: a checkpoint goes on only where all agree."""
    digest = hashlib.sha256()
    for row in plan.train.rows.tolist():
        digest.update(hashlib.sha256(pictures.content(row)).digest())
    return {
        "method": method.name,
        "settings": asdict(method),
        "regime": asdict(regime),
        "model": [clip.name, clip.pretrained],
        "data": pictures.name,
        "class_names": plan.train.class_names(pictures),
        "shots": plan.shots,
        "seed": plan.seed,
        "partition": plan.partition,
        "imbalance": plan.imbalance,
        "pictures": digest.hexdigest(),
    }


def _untouched(method: Method) -> ZeroShot:
    """Zero-shot with the prompts of the method's own teacher."""
    return ZeroShot(method.teacher_templates) if isinstance(method, PromptTuning) else ZeroShot()


def save_run(folder: Path, record: Record, learner: Learner) -> None:
    """Write `RUN_FILES`, so that at any moment the folder holds this run or the one before, whole.

    The record has the digest of what was learned, whose file lies beside until the record is there. That file has the
    digest of the record in its turn, so that a change of either is noticed.

    Raises:
        OSError: the folder cannot be written; the run before is still there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    record_file, prompt_file = (folder / name for name in RUN_FILES)
    told = {name: record[name] for name in ("model", "method", "settings", "shots", "seed", "partition", "accuracy")}
    new = folder / f".new-{secrets.token_hex(8)}.{prompt_file.name}"
    learner.save(new, **told, record=record_digest(record))
    try:
        write_json(record_file, {**record, _LEARNED: tensors_digest(load_learned(new)[0])})
    except Exception:  # not an interrupt, which may come when the record is already there
        new.unlink(missing_ok=True)
        raise
    os.replace(new, prompt_file)
    for left in folder.glob(_NEW):  # by a process that was killed
        left.unlink(missing_ok=True)


def load_run(folder: Path) -> tuple[Record, Learned]:
    """Read what `save_run` wrote: the record and what was learned.

    The model that the record names is not loaded: before you load it for a stranger's run, ask `is_known_model`.

    A record that was edited by hand is taken, with a warning in the log.

    Raises:
        ValueError: the folder or a file in it is missing, damaged or of another form, or what was learned is another
            run's than the record.
    """
    try:
        record = _read_record(folder / RUN_FILES[0])
        files = [folder / RUN_FILES[1], *sorted(folder.glob(_NEW))]
        for file in [file for file in files if file.exists()] or files:
            learned, header = load_learned(file)
            if tensors_digest(learned) == record[_LEARNED]:
                told = {name: value for name, value in record.items() if name != _LEARNED}
                if header["metadata"].get("record") != record_digest(told):
                    _LOG.warning("%s has been changed since the run was written", folder / RUN_FILES[0])
                return told, learned
        raise ValueError(f"{' and '.join(RUN_FILES)} are of two runs, or the digest in the record is damaged")
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder} is not a run of `prograd-fast train`: {error}; train it again") from error


def difference_to(folder: Path, facts: Record) -> str | None:
    """What tells the finished run in a folder from the one of these facts, for a message; None if it is the same.

    Raises:
        ValueError: see `load_run`.
    """
    record, _ = load_run(folder)
    check_kinds(record, {"facts": dict})
    return differing(record["facts"], facts)


_KINDS = {
    "method": str,
    "model.name": str,
    "model.pretrained": str | None,
    "settings": dict,
    "data.class_names": list,
    "trained_classes": list,
}


def _read_record(file: Path) -> Record:
    """A run's record; ValueError unless all is there that is read of it."""
    try:
        value = read_json(file)
        check_kinds(value, _KINDS)
        method_named(value["method"], value["settings"])
        for names in (value["data"]["class_names"], value["trained_classes"]):
            readable_class_names(names)
        check_kinds(value, {_LEARNED: str})
        return value
    except (TypeError, ValueError) as error:
        raise ValueError(f"{file.name}: {error}") from error


@contextmanager
def _taking_up(record: Record) -> Iterator[None]:
    """ValueError for whatever goes wrong with settings that come from a file."""
    try:
        yield
    except (ValueError, ImportError):
        raise
    except Exception as error:
        told = " ".join(str(error).split())
        raise ValueError(f"this run of {record['method']} cannot be used: {type(error).__name__}: {told}") from error


def _restored(record: Record, learned: Learned, clip: LoadedClip) -> tuple[Method, Learner]:
    with _taking_up(record):
        method = method_named(record["method"], record["settings"])
        return method, method.restore(clip.model, clip.tokenizer, record["trained_classes"], learned)


def evaluate_run(
    record: Record, learned: Learned, clip: LoadedClip, pictures: PictureSet, track: Track, cache: Path | None = None
) -> dict[str, dict[str, float]]:
    """Test a trained method on the test pictures of any set, among all of that set's classes.

    Args:
        record: of the run.
        learned: what `load_run` gave with it.
        clip: the model that it was trained for.
        pictures: the set, the one that was trained on or another.
        track: opens progress bars.
        cache: folder of image features that runs share, or None.

    Returns:
        Method ("zero-shot" and the run's own) -> part of the set -> top-1 accuracy in [0, 1].

    Raises:
        ValueError: what was learned is another model's, or the method cannot name the set's classes.
    """
    parts = test_parts(pictures, class_groups(pictures, None))
    tests = {name: part for name, part in parts.items() if name != "validation"}
    rows = np.concatenate([part.rows for part in tests.values()])
    method, learner = _restored(record, learned, clip)
    nothing = Task.without_pictures(clip.model, clip.tokenizer, pictures.class_names)
    learners = {"zero-shot": _untouched(method).start(nothing), method.name: learner}
    with _taking_up(record):
        learner.scores(pictures.class_names)  # names that do not fit are refused before the pictures are looked at
    features = encode_pictures(clip, pictures, rows, track("looking at the pictures", len(rows)), cache)
    on_tested = track("testing", len(learners) * len(rows))
    return {name: examine(one, clip, pictures, features, tests, on_tested) for name, one in learners.items()}


@torch.no_grad()
def predict_files(
    record: Record, learned: Learned, clip: LoadedClip, files: Sequence[Path], track: Track
) -> tuple[tuple[str, ...], Tensor]:
    """Classify picture files among all classes of the set that the method was trained on.

    A method that cannot name new classes tells those that it was trained on.

    Returns:
        The C class names, and (len(files), C) probabilities.

    Raises:
        ValueError: files that are not readable pictures; or what was learned gives no finite values.
    """
    method, learner = _restored(record, learned, clip)
    class_names = tuple(record["data"]["class_names"] if method.names_new_classes else record["trained_classes"])
    n = len(files)
    pictures = PictureSet(
        "predict", class_names, np.zeros(n, np.int64), np.array(["test"] * n), np.array([""] * n), list(files)
    )
    with _taking_up(record):
        scores = learner.scores(class_names)
    features = encode_pictures(clip, pictures, np.arange(n), track("looking at the pictures", n))
    probabilities = scores(features.values).softmax(dim=1)
    if not probabilities.isfinite().all():
        raise ValueError(f"this run of {method.name} gives values that are not finite; train it again")
    return class_names, probabilities
