"""A user's own pictures: one folder per class, optionally with readable names and a split of their own."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from prograd_fast.data.content_split import TEST_SHARE, split_by_content
from prograd_fast.data.pictures import PictureSet
from prograd_fast.data.split_folders import check_no_split_inside, find_parts
from prograd_fast.data.walk import pictures_in, subfolders
from prograd_fast.files.reading import read_text

Track = Callable[[str, int], Callable[[], object]]


def load_folder(
    path: str | Path,
    test_share: float = TEST_SHARE,
    fold: tuple[int, int] | None = None,
    whole: bool = False,
    track: Track = lambda label, total: lambda: None,
    unreadable: list[str] | None = None,
) -> PictureSet:
    """Load a folder of pictures as a set with a pool / validation / test split.

    Two layouts are understood. Plain: `path/CLASS/*.jpg`; each picture is then put into pool (50 %), validation (10 %)
    or test (40 %) by the hash of its content, see `split_by_content`: names of files have no influence, and pictures
    that are added later move no others. Where several pictures show the same thing, split them yourself:
    `path/train/CLASS/*.jpg` (the pool that shots are drawn from), `path/test/CLASS/*.jpg` and optionally
    `path/val/CLASS/*.jpg`, in the usual spellings.

    Files count as pictures by their suffix (`SUFFIXES`, any case; folders inside a class are searched too); hidden and
    system files do not, and `PictureSet.ignored` counts the others. Pictures are decoded only when they are used.

    A class is called as its folder unless `path/classes.txt` gives a readable name for every folder: one line each,
    `FOLDER<tab>readable name` (or a space, where the folder's name has none). Underscores become spaces.

    Args:
        path: The folder.
        test_share: The share of test pictures in the plain layout.
        fold: (k, n): fold k of n is the test part, the rest the pool, for cross-validation in the plain layout.
        whole: All pictures of the plain layout are test pictures; one class or one picture will do. For a folder that
            nothing is learned from.
        track: Opens a progress bar for the pictures that are read.
        unreadable: A list that gets a line for each file that cannot be read in the plain layout, which is then left
            out.

    Returns:
        The set; `source` holds the files' paths, `style` is empty, classes are in the order of their sorted folders.

    Raises:
        ValueError: The folder does not exist, holds fewer than two classes, a class without pictures or with a single
            one (none would be left to test on), an incomplete split, files that cannot be read, two classes of one
            name, or `classes.txt` is not UTF-8 or does not match the folders; `test_share` or `fold` is out of range,
            or given for a folder with a split of its own.
    """
    root = Path(path)
    if not root.is_dir():
        raise ValueError(f"{root}: no such folder; expected a folder with one folder of pictures per class")
    ignored: Counter[str] = Counter()
    top = subfolders(root, ignored)
    parts = find_parts(root, top)
    if parts and not whole and (fold is not None or test_share != TEST_SHARE):
        raise ValueError(
            f"{root} brings its own split ({', '.join(map(str, sorted(f.name for f in parts.values())))}); "
            "a test share or folds are for folders without"
        )
    files = _in_parts(root, parts, ignored) if parts else _in_classes(top, ignored)
    folders = sorted({folder for folder, _, _ in files})
    if len(folders) < (1 if whole else 2):
        inner = [f"{child}" for child in top if len(subfolders(child, Counter())) > 1]
        hint = f"; if {inner[0]} holds the class folders, give that" if inner else ""
        raise ValueError(
            f"{root}: found {len(folders)} class folder(s); expected at least two, each with its pictures{hint}"
        )
    names = _readable_names(_names_file(root, parts), folders)
    pictures = PictureSet(
        name=root.resolve().name,
        class_names=tuple(names[folder] for folder in folders),
        labels=np.array([folders.index(folder) for folder, _, _ in files], dtype=np.int64),
        split=np.array(["test" if whole and not parts else split for _, split, _ in files]),
        style=np.array([""] * len(files)),
        source=[file for _, _, file in files],
        folder=root.resolve(),
        ignored=+ignored,
    )
    return pictures if parts or whole else _split(pictures, folders, test_share, fold, track, unreadable)


def with_fold(pictures: PictureSet, fold: tuple[int, int]) -> PictureSet:
    """A set of `load_folder` with another fold as its test part; its files are not read again.

    Args:
        pictures: of a folder in the plain layout.
        fold: as in `load_folder`.

    Raises:
        ValueError: there is no such fold, or it has no picture.
    """
    digests = [pictures.digest(row) for row in range(len(pictures))]
    split = split_by_content(digests, pictures.labels, fold=fold)
    return replace(pictures, split=split, split_by={"fold": list(fold)})


def _in_parts(root: Path, parts: dict[str, Path], ignored: Counter[str]) -> list[tuple[str, str, Path]]:
    """(class folder, split, file) of the train/ test/ [val/] layout."""
    found = {part: {child.name: child for child in subfolders(folder, ignored)} for part, folder in parts.items()}
    classes, train = set(found["pool"]), parts["pool"].name
    files = []
    for part, folders in sorted(found.items()):
        odd = set(folders) - classes if part == "validation" else set(folders) ^ classes
        if odd:
            raise ValueError(f"{root}: class folder {min(odd)!r} is not in both {train}/ and {parts[part].name}/")
        for name, folder in folders.items():
            files += [(name, part, file) for file in pictures_in(folder, ignored)]
    return files


def _in_classes(folders: list[Path], ignored: Counter[str]) -> list[tuple[str, str, Path]]:
    """(class folder, "pool", file) of the plain layout."""
    check_no_split_inside(folders)
    return [(folder.name, "pool", file) for folder in folders for file in pictures_in(folder, ignored)]


def _split(
    pictures: PictureSet,
    folders: list[str],
    test_share: float,
    fold: tuple[int, int] | None,
    track: Track,
    unreadable: list[str] | None,
) -> PictureSet:
    """The set with each picture where its content says; without those that cannot be read, if there is a list."""
    digests = pictures.read_digests(track("reading the pictures", len(pictures)), unreadable)
    rows = [row for row, digest in enumerate(digests) if digest is not None]
    labels, known = pictures.labels[rows], [digest for digest in digests if digest is not None]
    for label, folder in enumerate(folders):
        if len({known[i] for i in np.flatnonzero(labels == label)}) < 2:
            n = int((labels == label).sum())
            found = "one picture" if n == 1 else f"{n} pictures, all the same" if n else "no picture that can be read"
            raise ValueError(
                f"{pictures.folder}: class folder {folder!r} holds {found}; expected at least two, one to learn from "
                "and one to test on"
            )
    readable = pictures.only(rows)
    if fold is not None:
        return with_fold(readable, fold)
    share = {} if test_share == TEST_SHARE else {"test_share": test_share}
    return replace(readable, split=split_by_content(known, labels, test_share), split_by=share)


def _names_file(root: Path, parts: dict[str, Path]) -> Path:
    """`root/classes.txt` in any case; ValueError where there are two, or where it lies in a part of a split."""
    found = [
        file for folder in (root, *parts.values()) for file in folder.iterdir() if file.name.lower() == "classes.txt"
    ]
    here = [file for file in found if file.parent == root]
    if len(here) > 1 or (found and not here):
        raise ValueError(f"{root}: found {', '.join(map(str, found))}; expected one classes.txt, beside the folders")
    return here[0] if here else root / "classes.txt"


def _readable_names(file: Path, folders: list[str]) -> dict[str, str]:
    """Class folder -> readable name."""
    names = {folder: folder for folder in folders}
    if file.exists():
        try:
            text = read_text(file)
        except UnicodeDecodeError as error:
            raise ValueError(f"{file} is not UTF-8 ({error}); save it as UTF-8") from error
        except OSError as error:
            raise ValueError(f"{file} cannot be read: {error.strerror}") from error
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        pairs = [line.split("\t" if "\t" in line else None, 1) for line in lines]
        listed = [pair[0].strip() for pair in pairs]
        for line, pair in zip(lines, pairs, strict=True):
            if len(pair) < 2 or pair[0].strip() not in names:
                raise ValueError(
                    f"{file}: cannot use the line {line!r}; expected a class folder, a tab or space, and a name "
                    f"(class folders: {', '.join(folders)})"
                )
        if sorted(listed) != folders:
            wrong = next(folder for folder in folders if listed.count(folder) != 1)
            raise ValueError(f"{file}: class folder {wrong!r} has {listed.count(wrong)} lines; expected one each")
        names = {folder.strip(): name for folder, name in pairs}
    names = {folder: name.replace("_", " ").strip() for folder, name in names.items()}
    folder_of: dict[str, str] = {}
    for folder, name in names.items():
        if folder_of.setdefault(name, folder) != folder:
            raise ValueError(
                f"{file.parent}: the class folders {folder_of[name]!r} and {folder!r} are both called {name!r}; a "
                "prompt cannot tell them apart: merge them, or name them in classes.txt"
            )
    return names
