"""Test a saved run on any set of pictures, but never on those that it has learned from."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from prograd_fast.clip import LoadedClip
from prograd_fast.clip.tokens import equal_prompts, readable_class_names
from prograd_fast.data import PictureSet
from prograd_fast.methods import Method, Task
from prograd_fast.training.evaluate import evaluate_parts
from prograd_fast.training.evaluation import Evaluation
from prograd_fast.training.features import encode_pictures, seen_by
from prograd_fast.training.progress import Track
from prograd_fast.training.protocol import class_groups, test_parts, unlearned
from prograd_fast.training.record import DIGEST_SIGNS, Record
from prograd_fast.training.saved_run import Learned, check_finite, known_classes, naming_the_run, restored
from prograd_fast.training.train import untouched


@dataclass(frozen=True)
class RunEvaluation:
    """How a run does on a set, beside the model without it.

    Attributes:
        method: the name of the run's method.
        tests: method ("zero-shot" and the run's own) -> part of the set -> evaluation.
        left_out: how many test pictures are not among them, because the run has learned from them.
        class_names: the classes among which each picture was classified.
        new: those of the set that the run does not know.
    """

    method: str
    tests: dict[str, dict[str, Evaluation]]
    left_out: int
    class_names: tuple[str, ...]
    new: tuple[str, ...] = ()


def has_learned_from(record: Record, pictures: PictureSet) -> bool:
    """Whether a run has learned from a picture of a set that is not in its pool."""
    return "learned" in unlearned(pictures, frozenset(record["learned_from"])).split


def held_out(record: Record, whole: PictureSet, split: Callable[..., PictureSet]) -> PictureSet:
    """A set with the pictures to test a run on as its test part.

    They are all pictures if the run has learned from none of them. If it has, they are the set's own test part, as
    when it was trained. A set that has no split, or whose test part was learned from, which may be if the run had
    another split, keeps all pictures: `evaluate_run` leaves out those that were learned from.

    Args:
        record: of the run.
        whole: the set, all pictures of which are test pictures.
        split: loads the set with its own split, for which it gets the options of `prograd_fast.data.load` with which
            the run's set was split (a share of test pictures, a fold); ValueError if it has none.
    """
    if not has_learned_from(record, whole):
        return whole
    try:
        own = split(**_split_options(record))
    except ValueError:
        return whole
    return own if "test" in unlearned(own, frozenset(record["learned_from"])).split else whole


def lost_of_learned(record: Record, pictures: PictureSet) -> int:
    """How many pictures that a run has learned from are not in a set, all of which is for the test.

    A picture that was saved again, or got another caption or rating in its file, is not known as the same.
    """
    found = {digest[:DIGEST_SIGNS] for digest in pictures.read_digests(unreadable=[]) if digest is not None}
    return len(set(record["learned_from"]) - found)


def _split_options(record: Record) -> dict[str, Any]:
    """The options that split the run's own set; ValueError where the record has others."""
    match record["data"].get("split_by", {}):
        case {"fold": [int(k), int(n)]}:
            return {"fold": (k, n)}
        case {"test_share": float(share)}:
            return {"test_share": share}
        case dict(none) if not none:
            return {}
    raise ValueError("split_by: expected a fold or a test share")


def evaluate_run(
    record: Record, learned: Learned, clip: LoadedClip, pictures: PictureSet, track: Track, cache: Path | None = None
) -> RunEvaluation:
    """Test a trained method on the test pictures of any set.

    The pictures are classified among the classes that the run knows if the set has no others, and else among the
    set's own. A set of one new class, among which nothing can be mistaken, is tested among that class and the run's.
    A set of the benchmark is tested among its own, as published, unless the method cannot leave classes out.

    Args:
        record: of the run.
        learned: what `load_run` gave with it.
        clip: the model that it was trained for.
        pictures: the set, the one that was trained on or another.
        track: opens progress bars.
        cache: folder of image features that runs share, or None.

    Raises:
        ValueError: what was learned is another model's, the method cannot name the set's classes, the run has learned
            from all test pictures, or gives values that are not finite.
    """
    method, learner = restored(record, learned, clip)
    pictures, new = _among(record, clip, method, pictures)
    groups = class_groups(pictures, None)
    with_all = test_parts(pictures, groups)
    parts = test_parts(unlearned(pictures, frozenset(record["learned_from"])), groups)
    tests = {name: part for name, part in parts.items() if name != "validation"}
    found = sum(len(part.rows) for name, part in with_all.items() if name != "validation")
    left_out = found - sum(len(part.rows) for part in tests.values())
    if not tests:
        raise ValueError(
            f"{pictures.name}: no picture to test on is left: the run has learned from all {left_out}; expected others"
            if left_out
            else f"{pictures.name}: no picture to test on; expected at least one"
        )
    rows = np.concatenate([part.rows for part in tests.values()])
    nothing = Task.without_pictures(clip.model, clip.tokenizer, pictures.class_names)
    learners = {"zero-shot": untouched(method).start(nothing), method.name: learner}
    with naming_the_run(record):
        learner.scores(pictures.class_names)  # names that do not fit are refused before the pictures are looked at
    projected = encode_pictures(clip, pictures, rows, track("looking at the pictures", len(rows)), cache)
    features = dict.fromkeys(learners, projected)
    if method.before_projection:
        features[method.name] = encode_pictures(seen_by(method, clip), pictures, rows, cache=cache)
    on_tested = track("testing", len(learners) * len(rows))
    evaluations = {name: evaluate_parts(one, features[name], tests, on_tested) for name, one in learners.items()}
    for evaluation in evaluations[method.name].values():
        check_finite(record, evaluation.probabilities)
    return RunEvaluation(method.name, evaluations, left_out, pictures.class_names, tuple(new))


def _among(record: Record, clip: LoadedClip, method: Method, pictures: PictureSet) -> tuple[PictureSet, list[str]]:
    """The set with the classes to choose from, see `evaluate_run`, and those of its classes that the run does not know.

    A class is known if its name is the same to the model: "Dog" is "dog".
    """
    known, own = known_classes(record, method), readable_class_names(pictures.class_names)
    if own == known:
        return pictures, []
    n = len(known)
    first = {j: i for i, j in equal_prompts(clip.tokenizer, (*known, *own))}
    places = [first.get(n + k, n + k) for k in range(len(own))]
    new = [own[place - n] for place in places if place >= n]
    if new and not method.names_new_classes:
        raise ValueError(
            f"{pictures.name} has the class {new[0]!r}, which {method.title} cannot name, because it was not trained "
            f"on it; expected classes among {_listed(known)}: rename or remove the others ({len(new)}), or train again"
        )
    if (new and len(own) > 1) or (pictures.published and method.names_new_classes):
        return pictures, new
    labels = np.array(places)[pictures.labels]  # one new class has the place behind the known ones
    return replace(pictures, class_names=(*known, *new), labels=labels), new


def _listed(names: tuple[str, ...]) -> str:
    """Names in a message, the first ten of many."""
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
