"""Classify picture files with a saved run. Files that cannot be read are told, and do not stop the others."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from prograd_fast.clip import LoadedClip
from prograd_fast.clip.rows import RowTable
from prograd_fast.clip.tokens import equal_prompts, readable_class_names
from prograd_fast.data import PictureSet
from prograd_fast.data.splits import Rows
from prograd_fast.files.reading import read_text
from prograd_fast.training.evaluate import Ranking, rank
from prograd_fast.training.evaluation import FloatArray, IntArray
from prograd_fast.training.features import Features, encode_pictures, seen_by
from prograd_fast.training.progress import Bar, Track
from prograd_fast.training.record import Record
from prograd_fast.training.saved_run import Learned, check_finite, known_classes, naming_the_run, restored

_AT_ONCE = 256  # files whose features are made together; where one cannot be read, so many are opened again


@dataclass(frozen=True)
class Predictions:
    """The predictions of a run for picture files.

    Attributes:
        class_names: the C classes to choose from.
        files: the n files that could be read.
        top: (n, k) int64, indices of the most probable classes, in falling order.
        probabilities: (n, k) float32, theirs.
        unreadable: the other files, and why they cannot be read.
    """

    class_names: tuple[str, ...]
    files: tuple[Path, ...]
    top: IntArray
    probabilities: FloatArray
    unreadable: dict[Path, str]


def predict_files(
    record: Record,
    learned: Learned,
    clip: LoadedClip,
    files: Sequence[Path],
    track: Track,
    class_names: Sequence[str] | None = None,
    top: int | None = None,
) -> Predictions:
    """Classify picture files.

    Args:
        record: of the run.
        learned: what `load_run` gave with it.
        clip: the model that it was trained for.
        files: the pictures.
        track: opens a progress bar.
        class_names: the classes to choose from, trained or not. None: all classes of the set that the method was
            trained on; or those that it was trained on, if it cannot name others.
        top: how many classes of each picture are told; None: all.

    Raises:
        ValueError: the method cannot name the classes, two of them are the same to the model, or what was learned
            gives no finite values.
    """
    method, learner = restored(record, learned, clip)
    known = known_classes(record, method)
    names = known if class_names is None else readable_class_names(class_names)
    if not method.names_new_classes and sorted(names) == sorted(known):
        names = known  # in another order the most probable classes are the same
    if not method.names_new_classes and names != known:
        raise ValueError(
            f"{method.title} cannot name classes that it was not trained on, nor leave out some: expected all "
            f"{len(known)} classes of this run and no others; train with a method that names new ones, such as prograd"
        )
    if class_names is not None and (pairs := equal_prompts(clip.tokenizer, names)):
        i, j = pairs[0]
        raise ValueError(
            f"the classes {class_names[i]!r} and {class_names[j]!r} are the same words to the model, so the second one "
            "would never be predicted; remove or rename it"
        )
    with naming_the_run(record):
        scores = learner.scores(names)
    features, unreadable = _features(seen_by(method, clip), files, track("looking at the pictures", len(files)))
    if features is None:
        empty = Ranking(np.empty((0, 0), np.int64), np.empty((0, 0), np.float32))
        return Predictions(names, (), *empty, unreadable)
    found = rank(scores, features.values, top)
    check_finite(record, found.probabilities)
    return Predictions(names, tuple(files[row] for row in features.rows), *found, unreadable)


def picture_files(files: Sequence[Path]) -> PictureSet:
    """Picture files whose classes are not known, as a set."""
    n = len(files)
    return PictureSet("predict", ("",), np.zeros(n, np.int64), np.full(n, "test"), np.full(n, ""), list(files))


def _features(clip: LoadedClip, files: Sequence[Path], on_picture: Bar) -> tuple[Features | None, dict[Path, str]]:
    """The features of the files that can be read, None where there is none; and why the others cannot be read."""
    pictures = picture_files(files)
    found: list[Features] = []
    unreadable: dict[Path, str] = {}
    for start in range(0, len(files), _AT_ONCE):
        rows = np.arange(start, min(len(files), start + _AT_ONCE))
        try:
            found.append(encode_pictures(clip, pictures, rows, on_picture))
        except ValueError:
            bad = _unreadable(pictures, rows)
            if not bad:
                raise
            unreadable.update({files[row]: reason for row, reason in bad.items()})
            good = np.array([row for row in rows if row not in bad])
            if len(good):
                found.append(encode_pictures(clip, pictures, good))
    if not found:
        return None, unreadable
    rows, values = np.concatenate([part.rows for part in found]), torch.cat([part.values for part in found])
    return Features(pictures, rows, RowTable.of(values)), unreadable


def _unreadable(pictures: PictureSet, rows: Rows) -> dict[int, str]:
    """Why pictures cannot be read, by row."""
    bad = {}
    for row in rows.tolist():
        try:
            pictures.open(row)
        except ValueError as error:
            bad[row] = str(error)
    return bad


def read_class_names(file: Path) -> tuple[str, ...]:
    """Class names from a text file, one in each line.

    Raises:
        ValueError: the file cannot be read as UTF-8, or has fewer than two names.
    """
    try:
        lines = [line.strip() for line in read_text(file).splitlines()]
        names = [line for line in lines if line]
        if folders := [line for line in names if "\t" in line]:
            raise ValueError(
                f"the line {folders[0]!r} has a tab, as in the classes.txt of a folder of pictures; expected one name "
                "in each line, and no folder before it"
            )
        if len(names) < 2:
            raise ValueError(f"{len(names)} names; expected at least two, one in each line")
        return readable_class_names(names)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ValueError(f"cannot read class names from {file}: {reason}") from error
