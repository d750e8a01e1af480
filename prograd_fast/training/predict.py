"""Classify picture files with a saved run. Files that cannot be read are told, and do not stop the others."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from prograd_fast.clip import LoadedClip
from prograd_fast.clip.tokens import readable_class_names, refuse_equal_names
from prograd_fast.data import PictureSet
from prograd_fast.files.reading import read_text
from prograd_fast.training.evaluate import Ranking, rank
from prograd_fast.training.features import Features, encode_pictures
from prograd_fast.training.progress import Bar, Track
from prograd_fast.training.record import Record
from prograd_fast.training.saved_run import Learned, known_classes, naming_the_run, restored

_AT_ONCE = 256  # files whose features are made together; where one cannot be read, so many are opened again


@dataclass(frozen=True)
class Predictions:
    """What a run makes of picture files.

    Attributes:
        class_names: the C classes to choose from.
        files: the n files that could be read.
        top: (n, k) int64, indices of the most probable classes, in falling order.
        probabilities: (n, k) float32, theirs.
        unreadable: the other files, and why they cannot be read.
    """

    class_names: tuple[str, ...]
    files: tuple[Path, ...]
    top: np.ndarray
    probabilities: np.ndarray
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
    if not method.names_new_classes and names != known:
        raise ValueError(
            f"{method.title} cannot name classes that it was not trained on: expected no other classes for this run; "
            "train with a method that has prompts, such as prograd"
        )
    if class_names is not None:
        refuse_equal_names(clip.tokenizer, names, "the given classes")
    with naming_the_run(record):
        scores = learner.scores(names)
    features, unreadable = _features(clip, files, track("looking at the pictures", len(files)))
    if features is None:
        empty = Ranking(np.empty((0, 0), np.int64), np.empty((0, 0), np.float32))
        return Predictions(names, (), *empty, unreadable)
    found = rank(scores, features.values, top)
    if not np.isfinite(found.probabilities).all():
        raise ValueError(f"this run of {method.name} gives values that are not finite; train it again")
    return Predictions(names, tuple(files[row] for row in features.rows), *found, unreadable)
