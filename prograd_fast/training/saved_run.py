"""Saved runs: a folder holds the record of a run and what was learned; it is written whole, checked, and used again."""

import logging
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from prograd_fast.clip import LoadedClip, is_known_model, load_learned, load_model
from prograd_fast.clip.load import same_pixels
from prograd_fast.clip.tokens import readable_class_names
from prograd_fast.files.reading import check_kinds, read_json
from prograd_fast.files.tensors import tensors_digest
from prograd_fast.methods import Learner, Method, method_named
from prograd_fast.training.checkpoint import differing
from prograd_fast.training.evaluation import FloatArray
from prograd_fast.training.record import DIGEST_SIGNS, Record, record_digest, write_json

RUN_FILES = ("record.json", "prompt.safetensors")
CHECKPOINT = "checkpoint.safetensors"  # in the folder of a run that is not finished
_LEARNED = "learned"  # entry of a record: the digest of what was learned
_NEW = ".new-*.prompt.safetensors"  # what was learned, while the record is being written

_LOG = logging.getLogger("prograd_fast")

Learned = dict[str, Tensor]  # what a method learned, by name


def save_run(folder: Path, record: Record, learner: Learner) -> None:
    """Write `RUN_FILES`, so that at any moment the folder holds this run or the one before, whole.

    The record has the digest of what was learned, whose file lies beside until the record is there. That file has the
    digest of the record in its turn, so that a change of either is noticed.

    Raises:
        OSError: the folder cannot be written; the run before is still there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    record_file, prompt_file = (folder / name for name in RUN_FILES)
    metadata = {
        name: record[name] for name in ("model", "method", "settings", "shots", "seed", "partition", "accuracy")
    }
    new = folder / f".new-{secrets.token_hex(8)}.{prompt_file.name}"
    learner.save(new, **metadata, record=record_digest(record))
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
                found = {name: value for name, value in record.items() if name != _LEARNED}
                if header["metadata"].get("record") != record_digest(found):
                    _LOG.warning("%s has been changed since the run was written", folder / RUN_FILES[0])
                return found, learned
        raise ValueError(f"{' and '.join(RUN_FILES)} are of two runs, or the digest in the record is damaged")
    except (OSError, ValueError) as error:
        folds = sorted(file.parent for file in folder.glob(f"fold*/{RUN_FILES[0]}"))
        if folds:
            raise ValueError(f"{folder} holds {len(folds)} runs, one for each fold: give {folds[0]}, say") from error
        raise ValueError(f"{folder} is not a run of `prograd-fast train`: {error}; train it again") from error


def difference_to(folder: Path, facts: Record) -> str | None:
    """Say how the finished run in a folder differs from the one of these facts, for a message; None if it is the same.

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
    "model.digest": str,
    "model.transform": str,
    "model.pixels": list,
    "settings": dict,
    "data.class_names": list,
    "trained_classes": list,
    "seed": int,
    "learned_from": list,
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
        if not all(isinstance(digest, str) and len(digest) == DIGEST_SIGNS for digest in value["learned_from"]):
            raise ValueError(f"learned_from: expected digests of {DIGEST_SIGNS} signs")
        return value
    except (TypeError, ValueError) as error:
        raise ValueError(f"{file.name}: {error}") from error


@contextmanager
def naming_the_run(record: Record) -> Iterator[None]:
    """ValueError for whatever goes wrong with settings that come from a file."""
    try:
        yield
    except (ValueError, ImportError):
        raise
    except Exception as error:
        message = " ".join(str(error).split())
        raise ValueError(f"this run of {record['method']} cannot be used: {type(error).__name__}: {message}") from error


def open_run(folder: Path, clip: LoadedClip | None = None) -> tuple[Record, Method, Learner]:
    """Load a run with everything that it learned; it predicts what it predicted when it was saved.

    Example:
        record, method, learner = open_run(Path("runs/mine"))
        scores = learner.scores(record["trained_classes"])  # of (B, D) unit image features

    Args:
        folder: the run's.
        clip: the model that it was trained for; None: the one that the record names, which is loaded if it is embedded
            or on open_clip's list. Any other may be anything (`is_known_model`): load it yourself.

    Raises:
        ValueError: the folder holds no whole run, or the model is not the one that it was trained for.
    """
    record, learned = load_run(folder)
    if clip is None:
        name, pretrained = record["model"]["name"], record["model"]["pretrained"]
        if not is_known_model(name, pretrained):
            raise ValueError(
                f"{folder} names the model {name!r} with weights {pretrained!r}, which is neither embedded nor on "
                "open_clip's list; if you trust it, give clip=load_model(name, weights)"
            )
        clip = load_model(name, pretrained)
    return record, *restored(record, learned, clip)


def restored(record: Record, learned: Learned, clip: LoadedClip) -> tuple[Method, Learner]:
    """The method of a run and what it learned, ready for use; ValueError if that is another model's."""
    if clip.digest != record["model"]["digest"]:
        raise ValueError(
            f"this run was trained on other weights: expected {_named(record['model'])} with digest "
            f"{record['model']['digest'][:16]}, got {_named(vars(clip))} with digest {clip.digest[:16]}; "
            "give the weights that it was trained on, or train again"
        )
    if not same_pixels(record["model"]["pixels"], clip.pixels):
        raise ValueError(
            f"{_named(vars(clip))} takes pictures in another way than the model that this run was trained on: then "
            f"{record['model']['transform']}, now {clip.transform}. Give the model with the configuration that it had "
            "(beside weights of Hugging Face lies preprocessor_config.json), or train again"
        )
    with naming_the_run(record):
        method = method_named(record["method"], record["settings"])
        learner = method.restore(clip.model, clip.tokenizer, record["trained_classes"], learned, record["seed"])
        return method, learner


def _named(model: Mapping[str, Any]) -> str:
    """A model's name and weights, in a message."""
    return f"{model['name']!r}" + ("" if model["pretrained"] is None else f" with weights {model['pretrained']!r}")


def known_classes(record: Record, method: Method) -> tuple[str, ...]:
    """The classes that a run tells apart: all of its set's, or, where it cannot name new ones, those it was trained on.

    They are readable names.
    """
    return readable_class_names(
        record["data"]["class_names"] if method.names_new_classes else record["trained_classes"]
    )


def check_finite(record: Record, probabilities: FloatArray) -> None:
    """ValueError where a run gives NaN or infinite values, whose order means nothing."""
    if not np.isfinite(probabilities).all():
        raise ValueError(f"this run of {record['method']} gives values that are not finite; train it again")
