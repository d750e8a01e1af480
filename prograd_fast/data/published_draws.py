"""The pictures that the field's projects learn from: CoOp's draws, and the lists that newer projects publish."""

from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from random import Random

import numpy as np

from prograd_fast.data.benchmarks import BENCHMARKS, Benchmark
from prograd_fast.data.pictures import PictureSet
from prograd_fast.data.splits import MAX_SEED, MOST_SHOTS, Rows
from prograd_fast.files.reading import parse_json, read_text, short

MOST_VALIDATION_SHOTS = 4  # validation pictures of a class, however many it has to learn from

# set, shots, seed -> pictures to learn from, and pictures to choose settings by
Draw = Callable[[PictureSet, int, int], tuple[Rows, Rows]]


def coop_draw(pictures: PictureSet, shots: int, seed: int) -> tuple[Rows, Rows]:
    """Draw the pictures that CoOp and the projects on Dassl draw, from all classes, as its command with `--seed` does.

    One stream of Python's `random`, `seed` at the start, gives `shots` pictures of each class of the pool, then
    min(shots, 4) of each class of the validation pictures. Classes come in the order in which the split's file names
    them first. A class that has fewer gives all, in the file's order. Base-to-new takes the base classes' part of the
    same draw.

    Code: KaiyangZhou/Dassl.pytorch, `generate_fewshot_dataset` in dassl/data/datasets/base_dataset.py. The order of
    ImageNet's pictures is that of the folder on disk there, and sorted here: its draws differ from machine to machine
    there, and are the same here.

    Args:
        pictures: A set of the benchmark, in the order of its split.
        shots: Pictures per class, 1 or more.
        seed: 0 or more; 1, 2 and 3 in the papers.

    Returns:
        Indices of the pictures to learn from and of those for validation, class by class, int64. A set without
        validation pictures has none.

    Raises:
        ValueError: a number is out of range.
    """
    _check_numbers(shots, seed)
    random = Random(seed)
    train = _sampled(pictures, "pool", shots, random)
    return train, _sampled(pictures, "validation", min(shots, MOST_VALIDATION_SHOTS), random)


def _sampled(pictures: PictureSet, part: str, shots: int, random: Random) -> Rows:
    rows = np.flatnonzero(pictures.split == part)
    labels = pictures.labels[rows]
    drawn: list[int] = []
    for label in dict.fromkeys(labels.tolist()):
        own = rows[labels == label].tolist()
        drawn += random.sample(own, shots) if len(own) >= shots else own
    return np.array(drawn, dtype=np.int64)


def listed_draw(pictures: PictureSet, shots: int, seed: int) -> tuple[Rows, Rows]:
    """Read the pictures of a published list: `split_fewshot/shot_K-seed_S_train.jsonl` and `..._val.jsonl`.

    FarinaMatteo/rethinking_fewshot_vlms publishes such lists of 11 sets, 5 numbers of shots and 3 seeds. Each line is a
    picture, {"_impath": ..., "_label": ..., "_classname": ..., ...}. Its path counts from the set's folder on, whatever
    stands before it. A picture may be listed twice, where a class has fewer than K. ImageNet has no list of validation
    pictures.

    Args:
        pictures: A set of the benchmark with its root.
        shots: K.
        seed: S.

    Returns:
        As `coop_draw`, in the order of the lists.

    Raises:
        ValueError: a list is missing, damaged, or names a picture that is not in this part of the set, or another
            label of it.
    """
    _check_numbers(shots, seed)
    benchmark = BENCHMARKS.get(pictures.name)
    if benchmark is None or pictures.folder is None:
        raise ValueError(f"{pictures.name}: lists are for the sets of the benchmark, in a root")
    parts = {"train": "pool", "val": "validation"}
    if "validation" not in pictures.split:
        del parts["val"]
    found = {
        part: _listed(pictures, benchmark, pictures.folder, f"split_fewshot/shot_{shots}-seed_{seed}_{key}.jsonl", part)
        for key, part in parts.items()
    }
    return found["pool"], found.get("validation", np.array([], dtype=np.int64))


def _listed(pictures: PictureSet, benchmark: Benchmark, root: Path, name: str, part: str) -> Rows:
    """The pictures that one list names, which have to be of this part."""
    file = benchmark.find(root, name)
    rows_of = {
        tail: row
        for row in np.flatnonzero(pictures.split == part).tolist()
        for tail in _tails(benchmark, Path(pictures.source[row]).as_posix())
    }
    rows = []
    try:
        for path, label in _lines(read_text(file)):
            row = next((rows_of[tail] for tail in _tails(benchmark, path) if tail in rows_of), None)
            if row is None:
                raise ValueError(f"{short(path)} is not among the pictures of the split's part {part}")
            if pictures.labels[row] != label:
                raise ValueError(f"{short(path)} has the label {label}, and {pictures.labels[row]} in the split")
            rows.append(row)
    except (ValueError, OSError) as error:
        raise ValueError(f"{file} cannot be used as a list of {pictures.name}: {error}") from error
    return np.array(rows, dtype=np.int64)


def _tails(benchmark: Benchmark, path: str) -> Iterator[str]:
    """The path behind each folder in it that is called as the set's."""
    steps = PurePosixPath(path).parts
    for folder in {benchmark.folder, benchmark.torchvision_folder or benchmark.folder}:
        own = PurePosixPath(folder).parts
        for i in range(len(steps) - len(own)):
            if steps[i : i + len(own)] == own:
                yield "/".join(steps[i + len(own) :])


def _lines(text: str) -> Iterator[tuple[str, int]]:
    for line in filter(None, map(str.strip, text.splitlines())):
        match parse_json(line):
            case {"_impath": str(path), "_label": int(label)} if not isinstance(label, bool):
                yield path, label
            case other:
                raise ValueError(f"expected an object with _impath and _label in each line, got {short(other)}")


def _check_numbers(shots: int, seed: int) -> None:
    for name, value, least, most in (("shots", shots, 1, MOST_SHOTS), ("seed", seed, 0, MAX_SEED)):
        if not least <= value <= most:
            raise ValueError(f"{name} must be between {least} and {most}, got {value}")
