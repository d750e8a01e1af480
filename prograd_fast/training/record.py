"""Run records: what was done and what came out, as JSON that a reader or a plot needs nothing else beside."""

import hashlib
import json
import math
import platform
from dataclasses import asdict
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

from prograd_fast.clip import LoadedClip
from prograd_fast.data import PictureSet
from prograd_fast.data.splits import Rows
from prograd_fast.files.reading import check_kinds
from prograd_fast.files.writing import replacing
from prograd_fast.methods import Method
from prograd_fast.training.options import TrainOptions
from prograd_fast.training.protocol import Plan
from prograd_fast.training.run import Run

Record = dict[str, Any]

DIGEST_SIGNS = 32  # of 64: no two pictures share them, and records stay small


def setup_record(clip: LoadedClip, pictures: PictureSet, rows: Rows) -> Record:
    """Model, data, versions and date: what all runs of one command share.

    Args:
        clip: the model; its weights are known by "digest", wherever they come from.
        pictures: the set.
        rows: the pictures of it that the runs use; the set is known by their "fingerprint", wherever they are.
    """
    packages = ("prograd-fast", "torch", "open_clip_torch", "numpy", "scikit-learn")
    return {
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
        "model": {
            "name": clip.name,
            "pretrained": clip.pretrained,
            "digest": clip.digest,
            "device": str(clip.device),
            "transform": clip.transform,
            "pixels": clip.pixels,
        },
        "data": {
            "name": pictures.name,
            "folder": None if pictures.folder is None else str(pictures.folder),
            "class_names": list(pictures.class_names),
            "pictures": len(pictures),
            "fingerprint": pictures.fingerprint(rows),
            "split_by": dict(pictures.split_by),
        },
    }


def run_record(run: Run, pictures: PictureSet) -> Record:
    """Settings, pictures, un-rounded accuracies in [0, 1], figures of each step, and times of one run.

    "regime" has the `TrainOptions.regime`, "left_out" is `Run.left_out`, "graph" tells how many steps replayed a CUDA
    graph, and why others did not.

    Where a method chose something on validation pictures, "chosen" says what, on how many of them, and the scalars that
    it found.

    A cosine with a zero gradient is null. At the first step, where the student's prompt is the teacher's unless `n_ctx`
    is given, the general gradient is zero or rounding, and the cosine means nothing: "conflict_rate" is that of the
    steps after it, null if there are none.
    """
    record: Record = {
        "method": run.method.name,
        "settings": asdict(run.method),
        "shots": run.plan.shots,
        "seed": run.plan.seed,
        "partition": run.plan.partition,
        "imbalance": run.plan.imbalance,
        "trained_classes": list(run.plan.train.class_names(pictures)),
        "pictures": {"train": len(run.plan.train.rows)} | {name: len(p.rows) for name, p in run.plan.tests.items()},
        "left_out": run.left_out,
        "accuracy": run.accuracy,
        "seconds": run.seconds,
        "regime": run.options.regime,
    }
    if run.method.chooses and "validation" in run.plan.tests:
        state = run.learner.module.state_dict()
        record["chosen"] = {
            "what": run.method.chooses,
            "validation_pictures": len(run.plan.tests["validation"].rows),
            "values": {name: value.item() for name, value in state.items() if not value.ndim},
        }
    if run.history is not None:
        record["completed"] = run.history.completed
        record["graph"] = {"replayed": run.history.replayed, "not_replayed": run.history.not_replayed}
        record["conflict_rate"] = _number(run.history.conflict_rate)
        record["steps"] = {
            "task_loss": run.history.task_loss,
            "general_loss": [_number(loss) for loss in run.history.general_loss],
            "cosine": [_number(cosine) for cosine in run.history.cosine],
            "conflict": run.history.conflict,
            "accuracy": [_number(accuracy) for accuracy in run.history.accuracy],
        }
        if len(run.history.terms) > 1:  # one alone is the task loss
            terms = run.history.terms.items()
            record["terms"] = {name: [_number(value) for value in values] for name, values in terms}
        if run.options.patience is not None:
            record["validation"] = run.history.validation
    return record


def run_facts(
    method: Method, clip: LoadedClip, plan: Record, options: TrainOptions, teacher: LoadedClip | None = None
) -> Record:
    """The facts that decide the numbers of a run, but for versions and machine: a checkpoint needs all to agree.

    Args:
        method: what is trained.
        clip: the model, known by its weights too.
        plan: the `plan_facts` of the run.
        options: how it is trained.
        teacher: the model that it keeps to, if that is another one.
    """
    return {
        "method": method.name,
        "settings": asdict(method),
        "regime": options.regime,
        "model": [clip.name, clip.pretrained],
        "weights": clip.digest,
        "transform": clip.transform,
        "teacher": None if teacher is None else [teacher.name, teacher.pretrained, teacher.digest, teacher.transform],
        **({} if method.crops is None or options.views is None else {"crops": asdict(method.crops)}),
        **plan,
    }


def plan_facts(pictures: PictureSet, plan: Plan) -> Record:
    """The pictures that are learned from and tested on.

    Pictures are known by their content: those to learn from in their order, which decides how a batch adds up, and the
    tests by `PictureSet.fingerprint`.

    Raises:
        ValueError: a picture cannot be read.
    """
    digest = hashlib.sha256()
    for row, label in zip(plan.train.rows.tolist(), plan.train.labels(pictures).tolist(), strict=True):
        digest.update(f"{label} {pictures.digest(row)} ".encode())
    return {
        "data": pictures.name,
        "class_names": plan.train.class_names(pictures),
        "shots": plan.shots,
        "seed": plan.seed,
        "partition": plan.partition,
        "imbalance": plan.imbalance,
        "pictures": digest.hexdigest(),
        "tests": {name: pictures.fingerprint(part.rows) for name, part in plan.tests.items()},
    }


def learned_from(pictures: PictureSet, plan: Plan) -> list[str]:
    """The first `DIGEST_SIGNS` signs of the content of each picture that is learned from, sorted.

    No test of the run, wherever its pictures lie, may have one of them; see `unlearned`.
    """
    return sorted(digest[:DIGEST_SIGNS] for digest in plan.train.contents(pictures))


def write_json(path: Path, record: Record) -> None:
    """Write a record, all of it or nothing. OSError if the folder is missing or not writable."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def record_digest(record: Record) -> str:
    """SHA-256 of what a record says, however it is written."""
    as_read = json.loads(json.dumps(record))  # with lists for tuples, and names that are strings
    return hashlib.sha256(json.dumps(as_read, sort_keys=True).encode()).hexdigest()


def seal(record: Record) -> Record:
    """A record with its digest, so that damage to its file is noticed when it is read."""
    return {**record, "digest": record_digest(record)}


def unseal(value: Any) -> Record:
    """The record that was sealed; ValueError if it has changed since."""
    check_kinds(value, {"digest": str})
    record = {name: entry for name, entry in value.items() if name != "digest"}
    if value["digest"] != record_digest(record):
        raise ValueError("its digest differs")
    return record


def _number(value: float) -> float | None:
    """JSON has no NaN."""
    return value if math.isfinite(value) else None
