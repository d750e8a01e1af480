"""A user's own pictures: one folder per class, optionally with readable names and a split of their own."""

from pathlib import Path

import numpy as np

from prograd_fast.data.pictures import PictureSet
from prograd_fast.files.reading import read_text

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"})
SPLIT_FOLDERS = {"train": "pool", "val": "validation", "test": "test"}
TEST_SHARE, VALIDATION_SHARE = 0.4, 0.1  # of a class's pictures, where the folder brings no split


def load_folder(
    path: str | Path, test_share: float = TEST_SHARE, fold: tuple[int, int] | None = None, whole: bool = False
) -> PictureSet:
    """Load a folder of pictures as a set with a pool / validation / test split.

    Two layouts are understood. Plain: `path/CLASS/*.jpg`; each class is then split 50 / 10 / 40 % into pool,
    validation and test, the same way on every machine (it depends on the file names alone). Where several pictures show
    the same thing, split them yourself: `path/train/CLASS/*.jpg` (the pool that shots are drawn from),
    `path/test/CLASS/*.jpg` and optionally `path/val/CLASS/*.jpg`.

    Files count as pictures by their suffix (`SUFFIXES`, any case; folders inside a class are searched too); hidden
    files and other suffixes do not. They are opened only when they are used, see `PictureSet.open`.

    A class is called as its folder unless `path/classes.txt` gives a readable name for every folder: one line each,
    `FOLDER<tab>readable name` (or a space, where the folder's name has none). Underscores become spaces.

    Args:
        path: The folder.
        test_share: Share of a class's pictures in the plain layout that are for testing.
        fold: (k, n): part k of n is for testing, and nothing for validation.
        whole: Whether all pictures of the plain layout are test pictures, for a set that nothing is learned from. It
            may have a single class.

    Returns:
        The set; `source` holds the files' paths, `style` is empty, classes are in the order of their sorted folders.

    Raises:
        ValueError: The folder does not exist, holds fewer than two classes, a class without pictures or with a single
            one (none would be left to test on), an incomplete split, two classes of one name, or `classes.txt` is not
            UTF-8 or does not match the folders.
    """
    root = Path(path)
    if not root.is_dir():
        raise ValueError(f"{root}: no such folder; expected a folder with one folder of pictures per class")
    files = _own_split(root) or (_all_test(root) if whole else _random_split(root, test_share, fold))
    folders = sorted({folder for folder, _, _ in files})
    if len(folders) < (1 if whole else 2):
        least = "one" if whole else "two"
        raise ValueError(
            f"{root}: found {len(folders)} class folder(s); expected at least {least}, each with its pictures"
        )
    names = _readable_names(root / "classes.txt", folders)
    return PictureSet(
        name=root.resolve().name,
        class_names=tuple(names[folder] for folder in folders),
        labels=np.array([folders.index(folder) for folder, _, _ in files], dtype=np.int64),
        split=np.array([split for _, split, _ in files]),
        style=np.array([""] * len(files)),
        source=[file for _, _, file in files],
        folder=root.resolve(),
    )


def _own_split(root: Path) -> list[tuple[str, str, Path]] | None:
    """(class folder, split, file) of the train/ test/ [val/] layout; None where the folder is not laid out so."""
    found = {folder.name for folder in _subfolders(root)}
    if not found or not (found <= set(SPLIT_FOLDERS) or {"train", "test"} <= found):
        return None
    if found - {"val"} != {"train", "test"}:
        raise ValueError(
            f"{root}: found the folders {', '.join(sorted(found))}; expected train/ and test/ (and optionally val/) "
            "with one folder per class in each, or one folder per class and nothing else"
        )
    classes = [folder.name for folder in _subfolders(root / "train")]
    files = []
    for part in sorted(found):
        here = {folder.name for folder in _subfolders(root / part)}
        odd = here - set(classes) if part == "val" else here ^ set(classes)
        if odd:
            raise ValueError(f"{root}: class folder {min(odd)!r} is not in both train/ and {part}/")
        for name in sorted(here):
            files += [(name, SPLIT_FOLDERS[part], file) for file in _pictures(root / part / name)]
    return files


def _random_split(root: Path, test_share: float, fold: tuple[int, int] | None) -> list[tuple[str, str, Path]]:
    """(class folder, split, file) of the plain layout."""
    files = []
    for folder in _subfolders(root):
        pictures = _pictures(folder)
        if len(pictures) < 2:
            raise ValueError(f"{folder}: one picture; expected at least two, one to learn from and one to test on")
        n_test = max(1, round(test_share * len(pictures)))
        n_validation = round(VALIDATION_SHARE * len(pictures))
        split = np.repeat(["test", "validation", "pool"], [n_test, n_validation, len(pictures) - n_test - n_validation])
        # RandomState: NumPy promises that its stream never changes.
        order = np.random.RandomState(0).permutation(len(pictures))
        if fold is not None:
            split = np.where(np.arange(len(pictures)) % fold[1] == fold[0], "test", "pool")
        files += [(folder.name, str(split[rank]), file) for rank, file in zip(order, pictures, strict=True)]
    return files


def _all_test(root: Path) -> list[tuple[str, str, Path]]:
    """(class folder, "test", file) of the plain layout."""
    return [(folder.name, "test", file) for folder in _subfolders(root) for file in _pictures(folder)]


def _subfolders(folder: Path) -> list[Path]:
    return sorted(child for child in folder.iterdir() if child.is_dir() and not child.name.startswith("."))


def _pictures(folder: Path) -> list[Path]:
    found = sorted(
        file
        for file in folder.rglob("*")
        if file.suffix.lower() in SUFFIXES
        and not file.is_dir()  # a pipe or a dangling link stays, and is refused when it is read
        and not any(part.startswith(".") for part in file.relative_to(folder).parts)
    )
    if not found:
        raise ValueError(f"{folder}: no picture; expected files that end in {', '.join(sorted(SUFFIXES))}")
    return found


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
